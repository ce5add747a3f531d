"""A list of prompts answered, several at once, by the engine of the server, with a clock on every request."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.model import Model
from pilocal.llamacpp.scheduler import BASE, Counts, Scheduler
from pilocal.llamacpp.sequences import Weights
from pilocal.prompt.sampling import likeliest

STEP = 256
"""llama.cpp's buffers of keys and values are multiples of so many tokens."""

Choose = Callable[[NDArray[np.float32]], int | None]
"""Chooses a token by its logits (vocabulary,)."""

OWN = "own"
"""The adapter that a model was loaded with, to the engine."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request got, and when."""

    tokens: tuple[int, ...]
    """The answer without its end token."""
    ttft: float
    """Seconds from the request to the first token."""
    total: float
    """Seconds from the request to the last."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """One prompt; whoever asked is told by `on_end`, in the engine's thread."""

    number: int
    prompt: list[int]
    weights: Weights
    choose: Choose
    is_end: Callable[[int], bool]
    max_tokens: int
    on_end: Callable[[_Request], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    error: Exception | None = None
    began: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        """Choose the next token; None where the answer is whole."""
        token = self.choose(logits_V)
        self.last = time.perf_counter()
        self.first = self.first or self.last
        if token is None or self.is_end(token):
            return None
        self.tokens.append(token)
        return token if len(self.tokens) < self.max_tokens else None

    def end(self, error: Exception | None) -> None:
        """Be told that nothing more comes."""
        self.error = error
        self.on_end(self)

    def answered(self) -> Answered:
        """Return what it got; raises what ended it, if the engine failed."""
        if self.error is not None:
            raise self.error
        return Answered(tuple(self.tokens), self.first - self.began, self.last - self.began)


class BatchEngine:
    """Answers up to `clients` requests at once; each client asks again once it has its answer. A context manager.

    The same prompts make the same batches every time, and so the same answers. With `prefix`, the number of tokens that
    all prompts begin with, what was read is used again by others, in one buffer. Without it every client has a buffer
    of its own, and no request sees what another has left.
    """

    def __init__(
        self, model: Model, *, clients: int, longest: int, prefix: int = 0, threads: int | None = None
    ) -> None:
        """Make the context; `longest` is a prompt with its answer, in tokens, `threads` one per core by default.

        Raises RunError when there is not enough memory.
        """
        self._tokenizer = model.tokenizer
        self._clients = clients
        self._weights = BASE if model.adapter is None else (OWN, 1.0)
        # A client's own buffer is whole steps long: llama.cpp would round the context down, not up.
        steps = math.ceil(longest / STEP) * STEP
        kept = 1 if prefix else 0
        tokens = prefix + (clients + kept) * (longest - prefix) if prefix else clients * steps
        with ExitStack() as stack:
            self._scheduler = stack.enter_context(
                Scheduler(
                    model,
                    {OWN: model.adapter},
                    tokens=tokens,
                    clients=clients,
                    kept=kept,
                    threads=threads,
                    paced=False,
                )
            )
            self._stack = stack.pop_all()

    @property
    def counts(self) -> Counts:
        """What it has done so far."""
        return self._scheduler.counts

    @property
    def peak_tokens(self) -> int:
        """The most tokens whose keys and values were kept at once; a shared beginning counts once."""
        return self.counts.peak

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        ends: frozenset[int] = frozenset(),
        choosers: Sequence[Choose] | None = None,
        done: Callable[[int], object] = lambda count: None,
    ) -> tuple[list[Answered], float]:
        """Answer the prompts; return what each got, in order, and the seconds that all of them took.

        `choosers` choose the tokens of each answer, by default the likeliest; None ends it. An answer ends with what
        the file calls an end, too, or with one of `ends`. `done` is told how many have their answer. Raises RunError
        when llama.cpp fails.
        """
        ended, waiting = SimpleQueue[_Request](), deque[_Request]()

        def ask(requests: Sequence[_Request]) -> None:
            now = time.perf_counter()
            for request in requests:
                request.began = now
            self._scheduler.submit(*requests)

        def go_on(request: _Request) -> None:
            if waiting and request.error is None:
                ask([waiting.popleft()])
            ended.put(request)

        def is_end(token: int) -> bool:
            return token in ends or self._tokenizer.is_end(token)

        for number, prompt in enumerate(prompts):
            waiting.append(
                _Request(
                    number=number,
                    prompt=list(prompt),
                    weights=self._weights,
                    choose=choosers[number] if choosers else likeliest,
                    is_end=is_end,
                    max_tokens=max_tokens,
                    on_end=go_on,
                )
            )
        began = time.perf_counter()
        ask([waiting.popleft() for _ in range(min(self._clients, len(waiting)))])
        answered: dict[int, Answered] = {}
        while len(answered) < len(prompts):
            request = ended.get()
            answered[request.number] = request.answered()
            done(len(answered))
        return [answered[number] for number in range(len(prompts))], time.perf_counter() - began

    def close(self) -> None:
        """Free the context."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
