"""The queue: one request is answered, a bounded number wait, and the others are refused."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from pilocal.server.refusal import Refusal

LATEST_WEIGHT = 0.2
"""The weight of the latest request in the mean duration."""


class Queue:
    """Lets requests reach the models one by one, in order of arrival."""

    def __init__(self, limit: int, on_waiting: Callable[[int], None]) -> None:
        """Let up to `limit` requests wait; `on_waiting` is called with their number whenever it changes."""
        import anyio

        self._limit = limit
        self._on_waiting = on_waiting
        self._lock = anyio.Lock()
        self._admitted = 0
        self._mean_seconds = 1.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit a request for the whole block; raises Refusal when too many wait already."""
        if self._admitted > self._limit:
            # The request being answered is half done on average.
            seconds = max(1, math.ceil((self._admitted - 0.5) * self._mean_seconds))
            raise Refusal(
                429,
                f"The server is busy, and {self._limit} requests are waiting already. Try again in {seconds} s.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for this request's turn, and keep the others waiting during the block."""
        import anyio

        async with self._lock:
            began = anyio.current_time()
            try:
                yield
            finally:
                self._mean_seconds += LATEST_WEIGHT * (anyio.current_time() - began - self._mean_seconds)

    def _change(self, by: int) -> None:
        self._admitted += by
        self._on_waiting(max(0, self._admitted - 1))
