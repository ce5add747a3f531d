"""The queue: one request at work, a bounded number in line, and the others sent away."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from pilocal.serve.refusal import Refusal

RECENT = 0.2
"""The weight of the latest request in the mean duration."""


class Queue:
    """Lets requests to the models one by one, in the order in which they came."""

    def __init__(self, line: int, told: Callable[[int], None]) -> None:
        """Let `line` requests wait behind the one at work; `told` hears how many do, whenever that changes."""
        import anyio

        self._line = line
        self._told = told
        self._lock = anyio.Lock()
        self._inside = 0
        self._seconds = 1.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place, at work or in line, for a whole request; raises Refusal when all are taken."""
        if self._inside > self._line:
            # The one at work is on average half done.
            seconds = max(1, math.ceil((self._inside - 0.5) * self._seconds))
            raise Refusal(
                429,
                f"The server is busy, and {self._line} requests are waiting already. Try again in {seconds} s.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._move(1)
        try:
            yield
        finally:
            self._move(-1)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it is this request's turn, and keep it for the block."""
        import anyio

        async with self._lock:
            began = anyio.current_time()
            try:
                yield
            finally:
                self._seconds += RECENT * (anyio.current_time() - began - self._seconds)

    def _move(self, change: int) -> None:
        self._inside += change
        self._told(max(0, self._inside - 1))
