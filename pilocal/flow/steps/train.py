"""train: the adapter through all stages, into RUN/stages/N and RUN/adapter."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan, training_facts
from pilocal.flow.mixing import check_requests
from pilocal.flow.rendering import GENERATION
from pilocal.flow.step import Step
from pilocal.flow.steps.edit import EDIT, edited
from pilocal.flow.steps.mix import MIX, mixed
from pilocal.flow.steps.stages import STAGES
from pilocal.flow.steps.teacher import TEACHER, soft_plan
from pilocal.run_folder.adapter import copy_adapter
from pilocal.run_folder.log import FILE, read_log
from pilocal.task.tables import GENPI
from pilocal.training.row_order import StagePlan

GOES_ON, WEIGHED = "on_policy", "strength"
"""The step that trains on from there, and the one that weighs what was trained; both write RUN/adapter anew."""


def _facts(context: Context) -> list[Any]:
    shares = [stage.share for stage in context.schedule.stages]
    adaptive = asdict(context.schedule.adaptive) if context.schedule.adaptive else None
    others = [step.key(context) for step in (TEACHER, MIX, EDIT) if step.wanted(context)]
    return [shares, adaptive, *training_facts(context), *others]


def _make(context: Context, key: str) -> list[Path]:
    from pilocal.export.gguf import check_exportable

    check_exportable(context.base)
    check_requests(context)
    steps = context.schedule.steps(context.task.training.steps)
    plans = [_plan(context, number, steps[number]) for number in context.trained]
    start = context.run.edit if EDIT.wanted(context) else None
    files = fit(context, plans, key, "train", adaptive=context.schedule.adaptive, start=start)
    context.run.forget(GOES_ON)
    context.run.forget(WEIGHED)
    return files + copy_adapter(plans[-1].folder, context.run.adapter)


def _plan(context: Context, number: int, steps: int) -> StagePlan:
    """Return a stage's work, with what the teacher says, the rows that teach the template, and unrelated requests.

    Of an edit, these are its rows and steps.
    """
    plan = soft_plan(context, stage_plan(context, number, steps, context.run.stage(number)))
    if context.task.training.objective == GENPI:
        plan = replace(plan, generation=context.rows(number, GENERATION))
    return mixed(context, edited(context, plan) if EDIT.wanted(context) else plan)


def _note(context: Context) -> str:
    """Return the steps at which the stages of an adaptive schedule ended."""
    if context.schedule.adaptive is None or EDIT.wanted(context):
        return ""
    logs = [read_log(context.run.stage(number) / FILE) for number in context.schedule.trained]
    ends = [str(lines[-1].step) for lines in logs]
    return f"the stages ended after {', '.join(ends)} steps"


TRAIN = Step(
    name="train", needs=(STAGES,), also=(TEACHER, MIX, EDIT), facts=_facts, make=_make, note=_note, trains=True
)
