"""The figures of a run, from what its files say: the fields of `state.State`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilocal.run_folder.live import Live
from pilocal.run_folder.log import RECENT, StepLine
from pilocal.watch.facts import Facts, StageFacts
from pilocal.watch.state import StageState, Step, StepState, Work
from pilocal.watch.time_left import UNKNOWN, PlannedStage, TimeLeft, steps_left, time_left
from pilocal.watch.words import sparkline

SHOWN_LINES = 8
WIDTH = 60
"""Letters of the sparkline."""


def step_states(facts: Facts, live: Live | None, since: float) -> tuple[StepState, ...]:
    """Return the steps; of those that were asked for, the ones before the step that is made are done.

    `since` are the seconds since `live` was written.
    """
    names = live.steps if live else tuple(facts.done)
    if live is None or live.step not in names:
        return tuple(_step(facts, name, name in facts.done) for name in names)
    now = names.index(live.step)
    made = StepState(name=live.step, state="now", seconds=live.seconds + since)
    before = (_step(facts, name, True) for name in names[:now])
    return (*before, made, *(_step(facts, name, False) for name in names[now + 1 :]))


def _step(facts: Facts, name: str, is_done: bool) -> StepState:
    state, seconds = ("done", facts.done.get(name)) if is_done else ("to come", None)
    return StepState(name=name, state=state, seconds=seconds)


def work_of(live: Live, since: float) -> Work | None:
    """Return the work that was reported last, None where none is."""
    if not live.what or live.total <= 0:
        return None
    left = (live.what_seconds + since) / live.done * (live.total - live.done) if live.done > 0 else None
    return Work(what=live.what, done=live.done, total=live.total, note=live.note, seconds_left=left)


def training_fields(
    facts: Sequence[StageFacts], lines: Sequence[Sequence[StepLine]], *, trains: bool, may_end_early: bool
) -> dict[str, Any]:
    """Return the fields about a training from the lines of its stages; `trains` tells whether it goes on."""
    planned = [PlannedStage(each.steps, each.tokens, own) for each, own in zip(facts, lines, strict=True)]
    left = time_left(planned) if trains else UNKNOWN
    steps = [each.steps for each in facts]
    return {
        "stages": tuple(map(_stage, facts, lines)),
        "stage": _place(planned),
        "total": None if None in steps else sum(filter(None, steps)),
        "seconds_left": left.training,
        "stage_seconds_left": left.stage,
        "guess": _guess(left, may_end_early),
        "sparkline": sparkline([_losses(own) for own in lines], WIDTH),
        "lines": _shown(lines),
        **_figures(lines),
    }


def _figures(stages: Sequence[Sequence[StepLine]]) -> dict[str, Any]:
    """Return where a training is, and the figures of its recent steps."""
    lines = [line for own in stages for line in own]
    last = lines[-1] if lines else None
    recent = lines[-RECENT:]
    valid = next(filter(None, map(_validated, reversed(stages))), [])
    seconds = sum(line.seconds for line in recent)
    return {
        "step": last.step if last else 0,
        "loss": last.loss if last else None,
        "valid_loss": next(reversed(valid), None),
        "lowest_valid_loss": min(valid, default=None),
        "tokens_per_second": sum(line.tokens for line in recent) / seconds if seconds > 0 else None,
        "peak_memory": max((line.peak_memory for line in recent), default=None),
    }


def _stage(facts: StageFacts, lines: Sequence[StepLine]) -> StageState:
    return StageState(
        number=facts.number,
        tau=facts.tau,
        shots=facts.shots,
        taken=len(lines),
        planned=facts.steps,
        loss=next(reversed(_losses(lines)), None),
        valid_loss=next(reversed(_validated(lines)), None),
        seconds=sum(line.seconds + (line.valid_seconds or 0.0) for line in lines),
    )


def _place(stages: Sequence[PlannedStage]) -> int | None:
    """Return the place of the stage that goes on, or was the last."""
    if not stages:
        return None
    begun = max((place for place, stage in enumerate(stages) if stage.lines), default=0)
    left = steps_left(stages) or []
    return next((place for place, steps in enumerate(left) if steps), begun)


def _losses(lines: Sequence[StepLine]) -> list[float]:
    return [line.loss for line in lines]


def _validated(lines: Sequence[StepLine]) -> list[float]:
    return [line.valid_loss for line in lines if line.valid_loss is not None]


def _guess(left: TimeLeft, may_end_early: bool) -> str:
    if left.training is None:
        return ""
    early = "a stage may end early" if may_end_early else ""
    return "; ".join(filter(None, (left.guess, early)))


def _shown(stages: Sequence[Sequence[StepLine]]) -> tuple[Step, ...]:
    numbered = [(place, line) for place, lines in enumerate(stages) for line in lines[-SHOWN_LINES:]]
    return tuple(
        Step(
            step=line.step,
            stage=place,
            loss=line.loss,
            valid_loss=line.valid_loss,
            tokens_per_second=line.tokens / max(line.seconds, 1e-4),
            peak_memory=line.peak_memory,
            seconds=line.seconds,
        )
        for place, line in numbered[-SHOWN_LINES:]
    )
