"""What a context holds: sequences of tokens, the weights that computed each, and the room that they take.

Keys and values are used again where the same weights, at the same strength, have read the same beginning, and nowhere
else. Sequences that share a beginning keep one copy of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from pilocal.llamacpp.context import Context

Weights = tuple[str, float]
"""An adapter's name and its strength; the base's own name and 1 where there is no adapter."""


SHORT = 128
"""Of shorter sequences one is kept for each of the weights: more would widen everybody's attention for little."""


@dataclass(slots=True, eq=False)
class Held:
    """A sequence whose keys and values are there."""

    number: int
    """llama.cpp's own."""
    weights: Weights
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """The cell of each token; sequences that share a beginning share its cells."""


class Sequences:
    """Gives out the room of a context, least recently used first once it is full."""

    def __init__(self, context: Context, *, sequences: int, tokens: int, reuse: bool = True) -> None:
        """Take a context with room for so many sequences, and for so many tokens of them all.

        Without `reuse`, nobody uses what another has read.
        """
        self._context = context
        self.reuse = reuse
        """Whether what was read is used again."""
        self.capacity = tokens
        self._free = list(range(sequences))[::-1]
        self._kept: list[Held] = []
        """Those that nobody continues at the moment, the least recently used first."""
        self._active: list[Held] = []
        self._references: Counter[int] = Counter()
        self._next_cell = count()
        self.evicted = 0
        """How many were forgotten to make room."""

    @property
    def used(self) -> int:
        """Tokens whose keys and values are there; a shared beginning counts once."""
        return len(self._references)

    def common(self, weights: Weights, prompt: Sequence[int]) -> int:
        """Return how many of a prompt's first tokens these weights have read, the last of the prompt left out."""
        return self._nearest(weights, prompt)[1]

    def begin(self, weights: Weights, prompt: Sequence[int]) -> Held | None:
        """Return a sequence that holds as much of a prompt's beginning as is there; None if all sequences go on."""
        source, shared = self._nearest(weights, prompt)
        if not self._free and not self._forget_oldest(source):
            if source is None or source not in self._kept:
                return None
            self._kept.remove(source)  # the only one that could be forgotten is the one that is wanted
            self.cut(source, shared)
            self._active.append(source)
            return source
        held = Held(self._free.pop(), weights)
        if source is not None and shared:
            self._context.share(source.number, held.number, shared)
            held.tokens, held.cells = source.tokens[:shared], source.cells[:shared]
            self._references.update(held.cells)
            if source in self._kept:  # it was of use
                self._kept.remove(source)
                self._kept.append(source)
        self._active.append(held)
        return held

    def extend(self, held: Held, tokens: Sequence[int]) -> None:
        """Note tokens that are about to be computed."""
        cells = [next(self._next_cell) for _ in tokens]
        held.tokens += tokens
        held.cells += cells
        self._references.update(cells)

    def cut(self, held: Held, length: int) -> None:
        """Forget what a sequence holds beyond its first tokens."""
        self._context.keep(held.number, length)
        self._release(held.cells[length:])
        del held.tokens[length:], held.cells[length:]

    def make_room(self, tokens: int) -> bool:
        """Forget what nobody continues until so many tokens fit; tell whether they do."""
        while self.used + tokens > self.capacity:
            if not self._forget_oldest(None):
                return False
        return True

    def end(self, held: Held) -> None:
        """Keep a sequence that nobody continues any more, in case its beginning is asked for again."""
        if not self.reuse:
            self.drop(held)
            return
        self._active.remove(held)
        if held.tokens:
            for other in [other for other in self._kept if _replaces(held, other)]:
                self._kept.remove(other)
                self._forget(other)
            self._kept.append(held)
        else:
            self._free.append(held.number)

    def drop(self, held: Held) -> None:
        """Forget a sequence that somebody continued."""
        self._active.remove(held)
        self._forget(held)

    def clear(self) -> None:
        """Forget all that nobody continues."""
        while self._forget_oldest(None):
            pass

    def _nearest(self, weights: Weights, prompt: Sequence[int]) -> tuple[Held | None, int]:
        """Return the sequence of these weights that shares the longest beginning with a prompt, and its length."""
        best: tuple[Held | None, int] = (None, 0)
        for held in self._of(weights) if self.reuse else ():
            shared = common_length(held.tokens, prompt, len(prompt) - 1)
            if shared > best[1]:
                best = (held, shared)
        return best

    def _of(self, weights: Weights) -> Iterator[Held]:
        return (held for held in (*self._active, *self._kept) if held.weights == weights)

    def _forget_oldest(self, but: Held | None) -> bool:
        for held in self._kept:
            if held is not but:
                self._kept.remove(held)
                self._forget(held)
                self.evicted += 1
                return True
        return False

    def _forget(self, held: Held) -> None:
        self._context.keep(held.number, 0)
        self._release(held.cells)
        self._free.append(held.number)

    def _release(self, cells: Sequence[int]) -> None:
        self._references.subtract(cells)
        for cell in cells:
            if not self._references[cell]:
                del self._references[cell]


def _replaces(held: Held, other: Held) -> bool:
    """Tell whether a sequence is worth keeping instead of another: it goes on from there, or both are short."""
    if held.weights != other.weights:
        return False
    return other.tokens == held.tokens[: len(other.tokens)] or max(len(held.tokens), len(other.tokens)) < SHORT


def common_length(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Return how many first tokens two sequences have in common, `most` at the most.

    >>> common_length([1, 2, 3, 4], [1, 2, 4, 4], 9), common_length([1, 2], [1, 2, 3], 1)
    (2, 1)
    """
    low, high = 0, min(len(one), len(other), most)
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
