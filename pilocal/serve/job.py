"""One request at work: which weights answer it, how far it is, and whether anybody still waits for it."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Job:
    """What the models and the door know of a request while it is answered."""

    model: str
    """The weights that answer: a task's name, or the base's."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the client has hung up: the answer then ends at the next token."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far, without its end token."""
    first: float | None = None
    """When the first token came, by `time.perf_counter()`."""

    def come(self, token: int, *, last: bool) -> None:
        """Take note of a token; the last one ends the answer and is no part of it."""
        if self.first is None:
            self.first = time.perf_counter()
        if not last:
            self.tokens.append(token)


JOB: ContextVar[Job] = ContextVar("pilocal_job")
"""The job of this context; llama-cpp-python's routes hand nothing else down to the model."""
