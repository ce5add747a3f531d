"""direct_drop: the ablation that trains with the whole prompt all the way, into RUN/direct_drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan, training_facts
from pilocal.flow.step import Step
from pilocal.flow.steps.mix import MIX, mixed
from pilocal.flow.steps.stages import STAGES
from pilocal.prompt.tokens import Row
from pilocal.training.row_order import StagePlan


def _facts(context: Context) -> list[Any]:
    shares: list[float] = []
    steps = context.task.training.direct_drop_steps
    mix = [MIX.key(context)] if MIX.wanted(context) else []
    return [shares, None, *training_facts(context), *([steps] if steps else []), *mix]


def _make(context: Context, key: str) -> list[Path]:
    training = context.task.training
    plan = stage_plan(context, 0, training.direct_drop_steps or training.steps, context.run.direct_drop)
    if context.schedule.stages[0].working:
        plan = _answers_alone(context, plan)
    return fit(context, [mixed(context, plan)], key, "direct_drop")


def _answers_alone(context: Context, plan: StagePlan) -> StagePlan:
    """Return the work without the working that a schedule fades: the ablation is asked for answers."""

    def cut(split: str, rows: Sequence[Row]) -> list[Row]:
        answers = context.rows(context.last_stage, split)
        return [row.completed_as(answer) for row, answer in zip(rows, answers, strict=True)]

    return replace(plan, train=cut("train", plan.train), valid=cut("valid", plan.valid))


def _wanted(context: Context) -> bool:
    return context.task.training.direct_drop and context.start is None


DIRECT_DROP = Step(
    name="direct_drop", needs=(STAGES,), also=(MIX,), facts=_facts, make=_make, wanted=_wanted, trains=True
)
