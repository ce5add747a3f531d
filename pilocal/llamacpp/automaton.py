"""A grammar as a machine over the bytes of an answer, in work that is bounded however the grammar is built."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.gbnf import Ranges
from pilocal.llamacpp.gbnf_rules import Rules

MAX_ITEMS = 4_000
"""Places in a grammar where an answer may be at once; what would lead to more is taken for not allowed."""

MAX_HELD = 200_000
"""Items and steps in all states that are kept, of about 100 bytes; then they are forgotten and computed again."""

MAX_MASKS = 256
"""States whose fitting tokens are kept."""

_END = 1 << 40
"""The symbol after the last of an alternative."""

_DONE = -1

Bytes = tuple[tuple[int, int], ...]
"""Characters as UTF-8: a run for each byte."""


class Frame:
    """Where a rule that was called goes on; compared by identity, so that deep nesting costs nothing."""

    __slots__ = ("returns",)

    def __init__(self, returns: frozenset[tuple[int, Frame | None]]) -> None:
        self.returns = returns


Item = tuple[int, int, Frame]
"""A place in the grammar before a character, what is left of that character's bytes, and where its rule goes on."""


class State:
    """Everything that an answer so far may be in the grammar."""

    __slots__ = ("complete", "items", "mask", "moves", "next")

    def __init__(self, items: frozenset[Item], complete: bool) -> None:
        self.items = items
        self.complete = complete
        """Whether the answer may end here."""
        self.moves: dict[int, list[Item]] | None = None
        self.next: dict[int, State | None] = {}
        self.mask: NDArray[np.uint8] | None = None
        """The tokens that may follow, as bits, once somebody has computed them."""


class Automaton:
    """Steps through a grammar a byte at a time.

    All the ways in which an answer may be read are followed together. Two that are in the same rule since the same byte
    are one, so that their number grows with the answer's length at most, where llama.cpp's can double with each
    character. Bytes that no rule tells apart are one class, `classes` of them.
    """

    def __init__(self, rules: Rules) -> None:
        self._symbols: list[int] = []
        self._starts: list[list[int]] = []
        for bodies in rules.alternatives:
            self._starts.append([])
            for body in bodies:
                self._starts[-1].append(len(self._symbols))
                self._symbols += [*body, _END]
        self._nullable = rules.nullable
        self._rank = {rule: i for i, rule in enumerate(rules.order)}
        self._order = rules.order
        encoded = [frozenset(utf8(characters)) for characters in rules.sets]
        self.byte_classes, self.classes = _byte_classes(encoded)
        self._examples = [int(each) for each in np.unique(self.byte_classes, return_index=True)[1]]
        self._rests: list[frozenset[Bytes]] = []
        self._rest_numbers: dict[frozenset[Bytes], int] = {}
        self._rest_moves: dict[int, list[tuple[int, int]]] = {}
        self._first = [self._number(each) for each in encoded]
        self._frames: dict[frozenset[tuple[int, Frame | None]], Frame] = {}
        self._states: dict[tuple[frozenset[Item], bool], State] = {}
        self._masked: deque[State] = deque()
        self._held = 0
        after = Frame(frozenset({(_DONE, None)}))
        self._symbols += [rules.root, _END]
        start = self._closed([(len(self._symbols) - 2, after)], [])
        assert start is not None  # a rule that begins in too many ways is refused
        self.start: State = start

    def step(self, state: State, byte_class: int) -> State | None:
        """Return where a byte of a class leads; None if it does not fit."""
        if byte_class not in state.next:
            moved = self._moves(state).get(byte_class)
            following = self._advance(moved) if moved else None
            state.next[byte_class] = following
            self._held += 1
        return state.next[byte_class]

    def walk(self, state: State, text: bytes) -> State | None:
        """Return where a text leads; None if it does not fit."""
        for byte in text:
            following = self.step(state, self.byte_classes[byte])
            if following is None:
                return None
            state = following
        return state

    def keep_mask(self, state: State, mask: NDArray[np.uint8]) -> None:
        """Keep the tokens that fit in a state, until there are too many of them."""
        state.mask = mask
        self._masked.append(state)
        if len(self._masked) > MAX_MASKS:
            self._masked.popleft().mask = None

    def _number(self, rest: frozenset[Bytes]) -> int:
        if rest not in self._rest_numbers:
            self._rest_numbers[rest] = len(self._rests)
            self._rests.append(rest)
        return self._rest_numbers[rest]

    def _byte_moves(self, rest: int) -> list[tuple[int, int]]:
        """Return the classes of the bytes that may follow within a character, and what is left then."""
        if rest not in self._rest_moves:
            found = []
            for number, byte in enumerate(self._examples):
                left = frozenset(each[1:] for each in self._rests[rest] if each[0][0] <= byte <= each[0][1])
                if left:
                    found.append((number, _DONE if () in left else self._number(left)))
            self._rest_moves[rest] = found
        return self._rest_moves[rest]

    def _moves(self, state: State) -> dict[int, list[Item]]:
        if state.moves is None:
            state.moves = {}
            for place, rest, frame in state.items:
                for byte_class, left in self._byte_moves(rest):
                    state.moves.setdefault(byte_class, []).append((place, left, frame))
            self._held += sum(map(len, state.moves.values()))
        return state.moves

    def _advance(self, moved: Iterable[Item]) -> State | None:
        arrived = [(place + 1, frame) for place, left, frame in moved if left == _DONE]
        return self._closed(arrived, [each for each in moved if each[1] != _DONE])

    def _closed(self, arrived: list[tuple[int, Frame]], within: list[Item]) -> State | None:
        """Return the state of these places and of all to which they lead without a byte; None if these are too many."""
        places, complete = self._returned(arrived)
        items = set(within)
        calls: dict[int, set[tuple[int, Frame | None]]] = {}
        waiting: list[int] = []

        def enter(place: int, frame: Frame) -> bool:
            """Take the symbol at a place; return whether the next may come at once."""
            symbol = self._symbols[place]
            if symbol < 0:
                items.add((place, self._first[~symbol], frame))
                return False
            if symbol == _END:
                return False
            if symbol not in calls:
                calls[symbol] = set()
                heapq.heappush(waiting, self._rank[symbol])
            last = self._symbols[place + 1] == _END
            calls[symbol].update(frame.returns if last else ((place + 1, frame),))
            return symbol in self._nullable

        for place, frame in places:
            enter(place, frame)
        while waiting and len(items) <= MAX_ITEMS:
            rule = self._order[heapq.heappop(waiting)]
            frame = self._frame(frozenset(calls[rule]))
            for start in self._starts[rule]:
                place = start
                while enter(place, frame):
                    place += 1
        if len(items) + len(places) > MAX_ITEMS:
            return None
        return self._state(frozenset(items), complete)

    def _returned(self, arrived: list[tuple[int, Frame]]) -> tuple[set[tuple[int, Frame]], bool]:
        """Return the places, with those to which finished rules go on, and whether the answer may end."""
        places = set(arrived)
        complete = False
        todo = list(places)
        while todo and len(places) <= MAX_ITEMS:
            place, frame = todo.pop()
            symbol = self._symbols[place]
            following: list[tuple[int, Frame]] = []
            if symbol == _END:
                complete = complete or (_DONE, None) in frame.returns
                following = [(place, frame) for place, frame in frame.returns if frame is not None]
            elif symbol in self._nullable:
                following = [(place + 1, frame)]
            for each in following:
                if each not in places:
                    places.add(each)
                    todo.append(each)
        return places, complete

    def _frame(self, returns: frozenset[tuple[int, Frame | None]]) -> Frame:
        found = self._frames.get(returns)
        if found is None:
            found = self._frames[returns] = Frame(returns)
            self._held += 1 + len(returns)
        return found

    def _state(self, items: frozenset[Item], complete: bool) -> State:
        found = self._states.get((items, complete))
        if found is None:
            if self._held > MAX_HELD:
                self._forget()
            found = self._states[items, complete] = State(items, complete)
            self._held += 16 + len(items)
        return found

    def _forget(self) -> None:
        """Let go of all states but those that requests are in."""
        for state in self._states.values():
            state.next, state.moves, state.mask = {}, None, None
        self._states.clear()
        self._frames.clear()
        self._masked.clear()
        self._held = 0


def utf8(characters: Ranges) -> list[Bytes]:
    """Return a set of characters as UTF-8.

    >>> utf8(((0x61, 0x7A), (0xE4, 0xE4)))
    [((97, 122),), ((195, 195), (164, 164))]
    """
    found: list[Bytes] = []
    todo = list(reversed(characters))
    while todo:
        low, high = todo.pop()
        cut = next((least for least in _cuts(low, high) if low < least <= high), None)
        if cut is None:
            found.append(tuple(zip(chr(low).encode(), chr(high).encode(), strict=True)))
        else:
            todo += [(cut, high), (low, cut - 1)]
    return found


def _cuts(low: int, high: int) -> Iterable[int]:
    """Yield where a run of characters has to be cut so that each byte runs on its own."""
    yield from (0x80, 0x800, 0x10000)
    for bits in (6, 12, 18):
        size = 1 << bits
        if low >= 0x80 and low // size != high // size:
            yield -(-low // size) * size
            yield (high + 1) // size * size


def _byte_classes(encoded: Iterable[Iterable[Bytes]]) -> tuple[list[int], int]:
    """Return the class of each byte, and how many classes there are."""
    runs = {run for sequences in encoded for sequence in sequences for run in sequence}
    begins = {low for low, _ in runs} | {high + 1 for _, high in runs}
    classes, number = [], 0
    for byte in range(256):
        number += byte > 0 and byte in begins
        classes.append(number)
    return classes, number + 1
