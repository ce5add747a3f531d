"""train: the adapter through all stages, into RUN/stages/N and RUN/adapter."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan, training_facts
from pilocal.flow.rendering import GENERATION, RESTATED
from pilocal.flow.step import Step
from pilocal.flow.steps.stages import STAGES
from pilocal.flow.steps.teacher import TEACHER, soft_rows
from pilocal.run_folder.adapter import copy_adapter
from pilocal.run_folder.log import FILE, read_log
from pilocal.task.tables import GENPI
from pilocal.training.row_order import StagePlan


def _facts(context: Context) -> list[Any]:
    shares = [stage.share for stage in context.schedule.stages]
    adaptive = asdict(context.schedule.adaptive) if context.schedule.adaptive else None
    teacher = [TEACHER.key(context)] if TEACHER.wanted(context) else []
    return [shares, adaptive, *training_facts(context), *teacher]


def _make(context: Context, key: str) -> list[Path]:
    from pilocal.export.gguf import check_exportable

    check_exportable(context.base)
    steps = context.schedule.steps(context.task.training.steps)
    plans = [_plan(context, i, steps[i]) for i in context.schedule.trained]
    files = fit(context, plans, key, "train", adaptive=context.schedule.adaptive)
    return files + copy_adapter(plans[-1].folder, context.run.adapter)


def _plan(context: Context, number: int, steps: int) -> StagePlan:
    """Return a stage's work, with what the teacher says and with the rows that teach the template itself."""
    plan, training = stage_plan(context, number, steps, context.run.stage(number)), context.task.training
    train, valid = (soft_rows(context, split, rows) for split, rows in (("train", plan.train), ("valid", plan.valid)))
    if training.restate:
        train += soft_rows(context, RESTATED, context.rows(number, RESTATED))
    generation = context.rows(number, GENERATION) if training.objective == GENPI else []
    return replace(plan, train=train, valid=valid, generation=generation)


def _note(context: Context) -> str:
    """Return the steps at which the stages of an adaptive schedule ended."""
    if context.schedule.adaptive is None:
        return ""
    logs = [read_log(context.run.stage(number) / FILE) for number in context.schedule.trained]
    ends = [str(lines[-1].step) for lines in logs]
    return f"the stages ended after {', '.join(ends)} steps"


TRAIN = Step(name="train", needs=(STAGES,), also=(TEACHER,), facts=_facts, make=_make, note=_note, trains=True)
