"""Who is told about a run while it works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from pilocal.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step."""

    name: str
    skipped: bool
    """True if its files were there and its inputs unchanged."""
    seconds: float
    note: str = ""
    """One remark about it, or nothing."""


def unheard(result: StepResult) -> None:
    """Ignore a step."""


def unseen(name: str) -> None:
    """Ignore that a step begins."""


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """The functions that a run calls while it works."""

    progress: Progress = silent
    """Called while long work goes on."""
    warn: Callable[[str], None] = warnings.warn
    """Called with every warning, one line."""
    begin: Callable[[str], None] = unseen
    """Called with the name of every step that is not skipped, before it is made."""
    step: Callable[[StepResult], None] = unheard
    """Called with every step that is done or skipped."""
    report_to: str | None = None
    """A tracker that receives every line of the training: "tensorboard" or "wandb"."""


QUIET = Listeners()
"""Only Python's warnings."""
