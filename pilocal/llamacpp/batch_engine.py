"""Many clients on one model: continuous batching in llama.cpp, as its server does it, with a clock on every request."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from pilocal.llamacpp.context import BATCH, Context, Entry
from pilocal.llamacpp.model import Model

STEP = 256
"""llama.cpp's buffers of keys and values are multiples of so many tokens."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request got, and when."""

    tokens: tuple[int, ...]
    """The answer without its end token."""
    ttft: float
    """Seconds from the request to the first token."""
    total: float
    """Seconds from the request to the last."""


@dataclass(slots=True)
class _Slot:
    """A client's request in progress."""

    number: int
    prompt: Sequence[int]
    began: float
    computed: int
    """Tokens of prompt and answer whose keys and values are there."""
    answer: list[int] = field(default_factory=list)
    first: float = 0.0

    def take(self, token: int, ended: bool) -> bool:
        """Take the next token, unless the answer has `ended` with it; return whether it has."""
        self.first = self.first or time.perf_counter()
        if not ended:
            self.answer.append(token)
        return ended

    def answered(self) -> Answered:
        """Return what the request got, now that its answer is whole."""
        return Answered(tuple(self.answer), self.first - self.began, time.perf_counter() - self.began)


class BatchEngine:
    """Answers up to `clients` requests at once; each client asks again once it has its answer. A context manager.

    Every step computes one token for each answer in progress, and fills up with tokens of waiting prompts. All prompts
    must begin with `prefix`, if one is given: its keys and values are computed once and shared, in one buffer. Without
    a prefix every client has a buffer of its own, and no request sees what another has left.
    """

    def __init__(
        self, model: Model, *, clients: int, longest: int, prefix: Sequence[int] = (), threads: int | None = None
    ) -> None:
        """Make the context; `longest` is a prompt with its answer, in tokens, `threads` one per core by default.

        Raises RunError when there is not enough memory.
        """
        self._tokenizer = model.tokenizer
        self._prefix = list(prefix)
        self._clients = clients
        self.peak_tokens = 0
        """The most tokens whose keys and values `answer` kept at once; a shared prefix counts once."""
        own = longest - len(self._prefix)
        # A client's own buffer is whole steps long: llama.cpp would round the context down, not up.
        steps = math.ceil(longest / STEP) * STEP
        tokens = (len(self._prefix) + clients * own) if self._prefix else clients * steps
        shared = bool(self._prefix)
        with ExitStack() as stack:
            self._context = stack.enter_context(
                Context(model, tokens, sequences=clients + shared, shared=shared, threads=threads)
            )
            for begin in range(0, len(self._prefix), BATCH):
                part = self._prefix[begin : begin + BATCH]
                self._context.decode([(token, begin + i, clients, False) for i, token in enumerate(part)])
            self._stack = stack.pop_all()

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        done: Callable[[int], object] = lambda count: None,
    ) -> tuple[list[Answered], float]:
        """Answer the prompts greedily; return what each got, in order, and the seconds that all of them took.

        An answer ends with what the file calls an end, or with one of `ends`. `done` is told how many have their
        answer. Raises RunError when llama.cpp fails.
        """
        waiting = deque(enumerate(prompts))
        slots: list[_Slot | None] = [None] * self._clients
        answered: dict[int, Answered] = {}
        self.peak_tokens = 0
        began = time.perf_counter()
        while waiting or any(slots):
            for sequence, slot in enumerate(slots):
                if slot is None and waiting:
                    slots[sequence] = self._start(sequence, *waiting.popleft())
            for sequence, token in self._step(slots):
                slot = slots[sequence]
                assert slot is not None
                ended = token in ends or self._tokenizer.is_end(token)
                if slot.take(token, ended) or len(slot.answer) == max_tokens:
                    answered[slot.number] = slot.answered()
                    slots[sequence] = None
                    done(len(answered))
        return [answered[number] for number in range(len(prompts))], time.perf_counter() - began

    def sequence_bytes(self, sequence: int = 0) -> int:
        """Return how many bytes llama.cpp itself counts for the keys and values of a client's last request."""
        return self._context.sequence_bytes(sequence)

    def _start(self, sequence: int, number: int, prompt: Sequence[int]) -> _Slot:
        began = time.perf_counter()
        shared = len(self._prefix)
        if list(prompt[:shared]) != self._prefix or len(prompt) == shared:
            raise ValueError(f"prompt {number} does not continue the prefix")
        self._context.keep(sequence, 0)
        if shared:
            self._context.share(self._clients, sequence, shared)
        return _Slot(number, prompt, began, shared)

    def _step(self, slots: Sequence[_Slot | None]) -> list[tuple[int, int]]:
        """Compute one batch; return the next token of every sequence that has one now."""
        entries: list[Entry] = []
        wanted: list[tuple[int, int]] = []
        active = [(sequence, slot) for sequence, slot in enumerate(slots) if slot is not None]
        # Answers go first, so that no answer waits for another's prompt; then prompts in order of arrival.
        active.sort(key=lambda each: (not each[1].answer, each[1].began))
        for sequence, slot in active:
            left = [slot.answer[-1]] if slot.answer else slot.prompt[slot.computed :]
            part = left[: BATCH - len(entries)]
            for i, token in enumerate(part):
                last = i == len(left) - 1
                if last:
                    wanted.append((sequence, len(entries)))
                entries.append((token, slot.computed + i, sequence, last))
            slot.computed += len(part)
        self._context.decode(entries)
        kept = sum(slot.computed - len(self._prefix) for _, slot in active) + len(self._prefix)
        self.peak_tokens = max(self.peak_tokens, kept)
        return [(sequence, self._context.best(place)) for sequence, place in wanted]

    def close(self) -> None:
        """Free the context."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
