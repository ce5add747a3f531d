"""stages: one data set per stage, into RUN/stages/N."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.stage_files import write_stages
from pilocal.flow.step import Step
from pilocal.flow.steps.compress import COMPRESS
from pilocal.flow.steps.index import INDEX
from pilocal.flow.template_rows import template_facts
from pilocal.task.schedule import Stage


def _facts(context: Context) -> list[Any]:
    others = [example.facts for example in (*context.task.valid, *context.task.test)]
    return [others, [_shape(stage) for stage in context.schedule.stages], *template_facts(context.task)]


def residue_facts(context: Context) -> list[Any]:
    """Return what decides what stands before the query of every request; nothing where the query is alone."""
    slots = [[dict(example.slots) for example in context.task.train]] if context.task.slots else []
    if not context.may_stay:
        return slots
    return [*slots, COMPRESS.key(context), INDEX.key(context), context.schedule.stages[-1].shots]


def _shape(stage: Stage) -> tuple[float, ...]:
    """Return what decides a stage's records beside the texts: its working only where there is one."""
    return (stage.tau, stage.shots, *([stage.working] if stage.working else []))


def _make(context: Context, key: str) -> list[Path]:
    return write_stages(context)


STAGES = Step(name="stages", needs=(COMPRESS, INDEX), facts=_facts, make=_make, settled=True)
