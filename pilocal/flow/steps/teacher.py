"""teacher: what the base says with the whole prompt about every completion token, into RUN/teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.flow.context import Context
from pilocal.flow.rendering import RESTATED, choose_shots
from pilocal.flow.setups import training_setup
from pilocal.flow.step import Step
from pilocal.flow.steps.index import INDEX
from pilocal.flow.template_rows import restated_examples, template_facts
from pilocal.prompt.render import render
from pilocal.prompt.soft import Soft
from pilocal.prompt.tokens import Row, token_counter, tokenize_all
from pilocal.run_folder.teacher import read_soft, write_soft
from pilocal.task import Example
from pilocal.task.tables import DISTILL

SPLITS = ("train", "valid")

ROWS = 128
"""Rows whose answers are kept in one file; a run that is killed begins with the first file that is missing."""


def soft_rows(context: Context, split: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a stage with what the teacher says about each; as they are where there is no teacher.

    Raises RunError when that is missing.
    """
    if not TEACHER.wanted(context):
        return list(rows)
    key, said = TEACHER.key(context), list[Soft]()
    for path in _paths(context, split, len(rows)):
        if (kept := read_soft(path, key)) is None:
            raise RunError(path, "what the teacher says is not there, or damaged", fix="run the same command again")
        said += kept
    return [row._replace(soft=soft) for row, soft in zip(rows, said, strict=True)]


def _wanted(context: Context) -> bool:
    return context.task.training.objective == DISTILL


def _facts(context: Context) -> list[Any]:
    training, precision = context.task.training, context.task.training.precision or "float32"
    examples = [example.facts for split in SPLITS for example in getattr(context.task, split)]
    settings = [training.distill_top_k, training.distill_temperature, precision, context.backend.name]
    facts = [context.base.sha256, context.task.template, context.max_shots, examples, settings]
    return [*facts, *template_facts(context.task)]


def _make(context: Context, key: str) -> list[Path]:
    teacher = None
    made: list[Path] = []
    for split in (*SPLITS, RESTATED) if context.task.training.restate else SPLITS:
        rows = _rows(context, split)
        for number, path in enumerate(_paths(context, split, len(rows))):
            begin = number * ROWS
            if read_soft(path, key) is None:
                teacher = teacher or training_setup(context.task, context.base, context.backend).teacher()
                write_soft(path, teacher.says(rows[begin : begin + ROWS]), key)
            context.progress(f"teacher: {split}", min(begin + ROWS, len(rows)), len(rows))
            made.append(path)
    return made


def _rows(context: Context, split: str) -> list[Row]:
    """Return a split as the teacher reads it: after the whole template and the shots of the stage that has the most."""
    task, found = context.task, list[Row]()
    if split == RESTATED:
        examples: Sequence[Example] = restated_examples(task, token_counter(context.base.tokenizer))
        shots: Sequence[tuple[int, ...]] = [()] * len(examples)
    else:
        examples, shots = getattr(task, split), choose_shots(context)[split]
    for example, chosen in zip(examples, shots, strict=True):
        record = render(task.template, [task.train[i] for i in chosen], example)
        found += tokenize_all(record, context.base.tokenizer, f"teacher, {split} {example.id}")
    return found


def _paths(context: Context, split: str, count: int) -> list[Path]:
    folder = context.run.teacher / split
    return [folder / f"{number:05}.npz" for number in range(-(-count // ROWS))]


TEACHER = Step(name="teacher", needs=(INDEX,), facts=_facts, make=_make, wanted=_wanted)
