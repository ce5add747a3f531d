"""train: the adapter through all stages, into RUN/stages/N and RUN/adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan, training_facts
from pilocal.flow.step import Step
from pilocal.flow.steps.stages import STAGES
from pilocal.run_folder.adapter import copy_adapter
from pilocal.run_folder.log import FILE, read_log


def _facts(context: Context) -> list[Any]:
    shares = [stage.share for stage in context.schedule.stages]
    adaptive = asdict(context.schedule.adaptive) if context.schedule.adaptive else None
    return [shares, adaptive, *training_facts(context)]


def _make(context: Context, key: str) -> list[Path]:
    from pilocal.export.gguf import check_exportable

    check_exportable(context.base)
    steps = context.schedule.steps(context.task.training.steps)
    plans = [stage_plan(context, i, steps[i], context.run.stage(i)) for i in context.schedule.trained]
    files = fit(context, plans, key, "train", adaptive=context.schedule.adaptive)
    return files + copy_adapter(plans[-1].folder, context.run.adapter)


def _note(context: Context) -> str:
    """Return the steps at which the stages of an adaptive schedule ended."""
    if context.schedule.adaptive is None:
        return ""
    logs = [read_log(context.run.stage(number) / FILE) for number in context.schedule.trained]
    ends = [str(lines[-1].step) for lines in logs]
    return f"the stages ended after {', '.join(ends)} steps"


TRAIN = Step(name="train", needs=(STAGES,), facts=_facts, make=_make, note=_note, trains=True)
