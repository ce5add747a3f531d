"""Who hears of a run while it works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from pilocal.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step."""

    name: str
    skipped: bool
    """True when its files were there and its inputs unchanged."""
    seconds: float
    note: str = ""
    """What there is to say about it."""


def unheard(result: StepResult) -> None:
    """Tell nobody of a step."""


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """What a run tells, and to whom."""

    progress: Progress = silent
    warn: Callable[[str], None] = warnings.warn
    step: Callable[[StepResult], None] = unheard
    """Hears of every step that is done or skipped."""
    report_to: str | None = None
    """A tracker that gets every line of the training: "tensorboard" or "wandb"."""


QUIET = Listeners()
"""Nobody but Python's warnings."""
