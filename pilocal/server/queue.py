"""How many requests are in the house: some are answered at once, a bounded number wait, and the others are refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pilocal.server.refusal import Refusal

LATEST_WEIGHT = 0.2
"""The weight of the latest request in the mean duration."""


class Queue:
    """Counts the requests that are answered or wait; the engine takes them in a fair order."""

    def __init__(self, parallel: int, limit: int, on_waiting: Callable[[int], None]) -> None:
        """Let `limit` wait beside those that are answered; `on_waiting` is called with how many do, on every change."""
        self._parallel = parallel
        self._limit = limit
        self._on_waiting = on_waiting
        self._admitted = 0
        self._mean_seconds = 1.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Admit a request for the whole block; raises Refusal when too many wait already."""
        if self._admitted >= self._parallel + self._limit:
            # Those being answered are half done on average.
            seconds = max(1, math.ceil((self._limit + 0.5) / self._parallel * self._mean_seconds))
            raise Refusal(
                429,
                f"The server is busy, and {self._limit} requests are waiting already. Try again in {seconds} s.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._change(1)
        began = time.monotonic()
        try:
            yield
        finally:
            self._mean_seconds += LATEST_WEIGHT * (time.monotonic() - began - self._mean_seconds)
            self._change(-1)

    @property
    def is_full(self) -> bool:
        """Whether another request would have to wait."""
        return self._admitted >= self._parallel

    def _change(self, by: int) -> None:
        self._admitted += by
        self._on_waiting(max(0, self._admitted - self._parallel))
