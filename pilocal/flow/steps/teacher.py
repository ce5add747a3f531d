"""teacher: what the base says with the whole prompt about every completion token, into RUN/teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from pilocal.errors import raise_all
from pilocal.flow.context import Context
from pilocal.flow.rendering import choose_shots, over_context
from pilocal.flow.setups import training_setup
from pilocal.flow.soft_files import SoftFiles
from pilocal.flow.step import Step
from pilocal.flow.steps.index import INDEX
from pilocal.prompt.render import render
from pilocal.prompt.tokens import Row, tokenize
from pilocal.task import Example
from pilocal.task.schedule import Schedule
from pilocal.task.tables import DISTILL
from pilocal.task.working import faded
from pilocal.training.protocol import Teacher

SPLITS = ("train", "valid")


def soft_rows(context: Context, split: str, rows: Sequence[Row], working: float = 0.0) -> list[Row]:
    """Return the rows of a stage with what the teacher says about each; as they are where there is no teacher.

    `working` is the share of the working that stands before the stage's answers. Raises RunError when what the teacher
    says is missing.
    """
    if not TEACHER.wanted(context):
        return list(rows)
    said = _files(context, TEACHER.key(context), split, working).read()
    return [row._replace(soft=soft) for row, soft in zip(rows, said, strict=True)]


def check_teacher(context: Context) -> None:
    """Raise InputError when what the teacher would read is longer than the base's context; no stage may be as long."""
    if TEACHER.wanted(context) and not any(
        stage.tau == 1 and stage.shots == context.max_shots for stage in context.schedule.stages
    ):
        for split in SPLITS:
            _rows(context, split, _workings(context)[0])


def _wanted(context: Context) -> bool:
    return context.task.training.objective == DISTILL


def _facts(context: Context) -> list[Any]:
    training, precision = context.task.training, context.task.training.precision or "float32"
    examples = [asdict(example) for split in SPLITS for example in getattr(context.task, split)]
    settings = [training.distill_top_k, training.distill_temperature, precision, context.backend.name]
    workings = [_workings(context)] if any(_workings(context)) else []
    return [context.base.sha256, context.task.template, context.max_shots, examples, settings, *workings]


def _make(context: Context, key: str) -> list[Path]:
    load, made = teacher_loader(context), list[Path]()
    for split, working in product(SPLITS, _workings(context)):
        rows, show = _rows(context, split, working), partial(context.progress, f"teacher: {split}")
        made += _files(context, key, split, working).make(rows, load, show)
    return made


def teacher_loader(context: Context) -> Callable[[], Teacher]:
    """Return what loads the teacher when it is first asked."""
    return cache(lambda: training_setup(context.task, context.base, context.backend).teacher())


def _workings(context: Context) -> tuple[float, ...]:
    """Return the shares of the working that rows are trained with, the largest first; (0.0,) where none fades."""
    again = {context.last_stage} if context.task.training.on_policy else set()
    return Schedule(tuple(context.schedule.stages[number] for number in {*context.trained, *again})).workings


def _rows(context: Context, split: str, working: float) -> list[Row]:
    return prompted_rows(context, split, [faded(example, working) for example in getattr(context.task, split)])


def prompted_rows(context: Context, split: str, examples: Sequence[Example]) -> list[Row]:
    """Return a split's `examples` as the teacher reads them, maybe with other answers.

    It reads the whole template and the shots of the stage that has the most.
    """
    task, shots = context.task, choose_shots(context)[split]
    found = []
    for example, chosen in zip(examples, shots, strict=True):
        record = render(task.template, [task.train[i] for i in chosen], example)
        found.append(tokenize(record, context.base.tokenizer, f"teacher, {split} {example.id}"))
    longest, where = max(len(row.tokens) for row in found), '[training] objective = "distill"'
    raise_all(over_context(where, "the longest row with the whole prompt", longest, context.base.context))
    return found


def _files(context: Context, key: str, split: str, working: float) -> SoftFiles:
    folder = context.run.teacher / (f"{split}-working-{working}" if working else split)
    return SoftFiles(folder, key, len(getattr(context.task, split)))


TEACHER = Step(name="teacher", needs=(INDEX,), facts=_facts, make=_make, wanted=_wanted)
