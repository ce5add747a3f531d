"""One request being answered: which weights answer it, how far it is, and whether its client still waits."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Job:
    """What the models and the gateway know of a request while it is answered."""

    model: str
    """The weights that answer: a task's name, or the base's."""
    strength: float = 1.0
    """The factor on what their adapter adds."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set when the client has hung up: the answer then ends at the next token."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far, without its end token."""
    first_token_time: float | None = None
    """When the first token came, by `time.perf_counter()`."""

    def add(self, token: int, *, last: bool) -> None:
        """Record a token; the last one ends the answer and is no part of it."""
        if self.first_token_time is None:
            self.first_token_time = time.perf_counter()
        if not last:
            self.tokens.append(token)


CURRENT_JOB: ContextVar[Job] = ContextVar("pilocal_job")
"""The job of this context; llama-cpp-python's routes pass nothing else to the model."""
