"""direct_drop: the ablation that trains with the whole prompt all the way, into RUN/direct_drop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan, training_facts
from pilocal.flow.step import Step
from pilocal.flow.steps.mix import MIX, mixed
from pilocal.flow.steps.stages import STAGES


def _facts(context: Context) -> list[Any]:
    shares: list[float] = []
    steps = context.task.training.direct_drop_steps
    mix = [MIX.key(context)] if MIX.wanted(context) else []
    return [shares, None, *training_facts(context), *([steps] if steps else []), *mix]


def _make(context: Context, key: str) -> list[Path]:
    training = context.task.training
    plan = stage_plan(context, 0, training.direct_drop_steps or training.steps, context.run.direct_drop)
    return fit(context, [mixed(context, plan)], key, "direct_drop")


def _wanted(context: Context) -> bool:
    return context.task.training.direct_drop and context.start is None


DIRECT_DROP = Step(
    name="direct_drop", needs=(STAGES,), also=(MIX,), facts=_facts, make=_make, wanted=_wanted, trains=True
)
