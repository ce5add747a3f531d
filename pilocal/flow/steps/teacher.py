"""teacher: what the base says with the whole prompt about every completion token, into RUN/teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from pilocal.errors import raise_all
from pilocal.flow.context import Context
from pilocal.flow.rendering import RESTATED, choose_shots, over_context
from pilocal.flow.setups import helping_setup
from pilocal.flow.soft_files import SoftFiles
from pilocal.flow.step import Step
from pilocal.flow.steps.index import INDEX
from pilocal.flow.template_rows import restated_examples, template_facts
from pilocal.prompt.render import render
from pilocal.prompt.tokens import Row, token_counter, tokenize_all
from pilocal.task import Example
from pilocal.task.schedule import Schedule
from pilocal.task.tables import DISTILL
from pilocal.task.working import faded
from pilocal.training.protocol import Teacher
from pilocal.training.row_order import StagePlan

SPLITS = ("train", "valid")


def soft_rows(context: Context, split: str, rows: Sequence[Row], working: float = 0.0) -> list[Row]:
    """Return the rows of a stage with what the teacher says about each; as they are where there is no teacher.

    `working` is the share of the working that stands before the stage's answers. Raises RunError when what the teacher
    says is missing.
    """
    if not TEACHER.wanted(context):
        return list(rows)
    said = _files(context, TEACHER.key(context), split, len(rows), working).read()
    return [row._replace(soft=soft) for row, soft in zip(rows, said, strict=True)]


def soft_plan(context: Context, plan: StagePlan) -> StagePlan:
    """Return a stage's work with the rows that restate the template, if any, and what the teacher says about each row.

    Raises RunError as `soft_rows` does.
    """
    working = context.schedule.stages[plan.number].working
    splits = (("train", plan.train), ("valid", plan.valid))
    train, valid = (soft_rows(context, split, rows, working) for split, rows in splits)
    if context.task.training.restate:
        train += soft_rows(context, RESTATED, context.rows(plan.number, RESTATED))
    return replace(plan, train=train, valid=valid)


def check_teacher(context: Context) -> None:
    """Raise InputError when what the teacher would read is longer than the base's context; no stage may be as long."""
    if TEACHER.wanted(context) and not any(
        stage.tau == 1 and stage.shots == context.max_shots for stage in context.schedule.stages
    ):
        for split, _ in _sets(context, _workings(context)[:1]):
            _read_rows(context, split, _workings(context)[0])


def _sets(context: Context, workings: Sequence[float]) -> list[tuple[str, float]]:
    """Return what the teacher reads: each split with every share of its working, and the entries that are restated."""
    restated = [(RESTATED, 0.0)] if context.task.training.restate else []
    return [*product(SPLITS, workings), *restated]


def _wanted(context: Context) -> bool:
    return context.task.training.objective == DISTILL


def _facts(context: Context) -> list[Any]:
    training, precision = context.task.training, context.task.training.precision or "float32"
    examples = [example.facts for split in SPLITS for example in getattr(context.task, split)]
    settings = [training.distill_top_k, training.distill_temperature, precision, context.backend.name]
    workings = [_workings(context)] if any(_workings(context)) else []
    facts = [context.base.sha256, context.task.template, context.max_shots, examples, settings, *workings]
    return [*facts, *template_facts(context.task)]


def _make(context: Context, key: str) -> list[Path]:
    load, made = teacher_loader(context), list[Path]()
    for split, working in _sets(context, _workings(context)):
        rows, show = _read_rows(context, split, working), partial(context.progress, f"teacher: {split}")
        made += _files(context, key, split, len(rows), working).make(rows, load, show)
    return made


def teacher_loader(context: Context) -> Callable[[], Teacher]:
    """Return what loads the teacher when it is first asked."""
    return cache(lambda: helping_setup(context).teacher())


def _workings(context: Context) -> tuple[float, ...]:
    """Return the shares of the working that rows are trained with, the largest first; (0.0,) where none fades."""
    again = {context.last_stage} if context.task.training.on_policy else set()
    return Schedule(tuple(context.schedule.stages[number] for number in {*context.trained, *again})).workings


def prompted_rows(context: Context, split: str, examples: Sequence[Example]) -> list[Row]:
    """Return a split's `examples` as the teacher reads them, maybe with other answers.

    It reads the whole template and the shots of the stage that has the most. A row may exceed the base's context.
    """
    task, found = context.task, list[Row]()
    shots = [()] * len(examples) if split == RESTATED else choose_shots(context)[split]
    for example, chosen in zip(examples, shots, strict=True):
        record = render(task.template, [task.train[i] for i in chosen], example)
        found += tokenize_all(record, context.base.tokenizer, f"teacher, {split} {example.id}")
    return found


def _read_rows(context: Context, split: str, working: float) -> list[Row]:
    """Return a split, or the restated entries, as the teacher reads it; raises InputError for too long a row."""
    task = context.task
    if split == RESTATED:
        examples = restated_examples(task, token_counter(context.base.tokenizer))
    else:
        examples = [faded(example, working) for example in getattr(task, split)]
    rows = prompted_rows(context, split, examples)
    longest, where = max(len(row.tokens) for row in rows), '[training] objective = "distill"'
    raise_all(over_context(where, "the longest row with the whole prompt", longest, context.base.context))
    return rows


def _files(context: Context, key: str, split: str, count: int, working: float) -> SoftFiles:
    folder = context.run.teacher / (f"{split}-working-{working}" if working else split)
    return SoftFiles(folder, key, count)


TEACHER = Step(name="teacher", needs=(INDEX,), facts=_facts, make=_make, wanted=_wanted)
