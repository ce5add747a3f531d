"""How long a training will still take, told from the steps that it took.

A step costs less from stage to stage, as the prompt becomes shorter. A stage that has begun is measured; one to come is
taken to cost as much per token as the last that was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pilocal.run_folder.log import RECENT, StepLine


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """What a stage is to do, and what it did so far."""

    steps: int | None
    """None where that is not known."""
    tokens: float | None
    """About how many a step computes; None where that is not known."""
    lines: Sequence[StepLine]


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """What is left, in seconds; None where nothing is measured yet, no step is left, or the steps are not known."""

    stage: float | None
    training: float | None
    guess: str = ""
    """What makes it less sure than measured steps do; empty where nothing does."""


UNKNOWN = TimeLeft(None, None)
SAME_COST = "a step of a stage to come is taken to cost what the last one did"


def step_seconds(lines: Sequence[StepLine]) -> float:
    """Return what a step takes, with its part of the validations; there must be a line at least.

    The first step of a stage compiles; it is left out once there are two more.
    """
    recent = lines[1:][-RECENT:] if len(lines) > 2 else lines
    own = sum(line.seconds for line in recent) / len(recent)
    return own + sum(line.valid_seconds or 0.0 for line in lines) / len(lines)


def time_left(stages: Sequence[PlannedStage]) -> TimeLeft:
    """Return what is left of a training that goes on; it goes through `stages` in their order.

    A stage that ended early leaves its steps to the next one.
    """
    measured, left = next((stage for stage in reversed(stages) if stage.lines), None), steps_left(stages)
    if measured is None or left is None:
        return UNKNOWN
    per_step = step_seconds(measured.lines)
    shares = [_share(stage, measured) for stage in stages]
    costs = [steps * per_step * (share or 1.0) for steps, share in zip(left, shares, strict=True)]
    own = next(filter(None, costs), None)
    if own is None:
        return UNKNOWN
    is_guess = any(steps and share is None for steps, share in zip(left, shares, strict=True))
    return TimeLeft(own, sum(costs), SAME_COST if is_guess else "")


def _share(stage: PlannedStage, measured: PlannedStage) -> float | None:
    """Return what a step costs in multiples of one of the measured stage; None where that is not known."""
    if stage is measured:
        return 1.0
    return stage.tokens / measured.tokens if stage.tokens and measured.tokens else None


def steps_left(stages: Sequence[PlannedStage]) -> list[int] | None:
    """Return how many steps each stage may still take; None where that is not known."""
    taken = max((stage.lines[-1].step for stage in stages if stage.lines), default=0)
    begun = max((place for place, stage in enumerate(stages) if stage.lines), default=0)
    left, end = list[int](), 0
    for place, stage in enumerate(stages):
        if stage.steps is None:
            return None
        end += stage.steps
        over = place < begun or (place == begun and _moves_on(stage))
        left.append(0 if over else max(0, end - taken))
        taken = taken if over else max(taken, end)
    return left


def _moves_on(stage: PlannedStage) -> bool:
    decision = stage.lines[-1].decision if stage.lines else None
    return decision is not None and decision.moves_on is True
