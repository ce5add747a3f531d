"""on_policy: the student answers, the teacher judges these answers, and the training goes on, into RUN/on_policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.flow.answering import Answering
from pilocal.flow.context import Context
from pilocal.flow.fitting import fit, stage_plan
from pilocal.flow.soft_files import SoftFiles
from pilocal.flow.step import Step
from pilocal.flow.steps.mix import mixed
from pilocal.flow.steps.teacher import prompted_rows, soft_plan, teacher_loader
from pilocal.flow.steps.train import TRAIN, WEIGHED
from pilocal.prompt.render import Message, Record
from pilocal.prompt.tokens import Row, prompt_tokens, tokenize
from pilocal.run_folder.adapter import copy_adapter
from pilocal.run_folder.rows import write_records
from pilocal.task import Example
from pilocal.training.row_order import StagePlan

SPLIT = "train"
"""The queries that the student answers."""

FEWER = 4
"""By default as many times fewer steps as the training before had."""


def on_policy_facts(context: Context) -> list[Any]:
    """Return what decides what is trained last, beside the training before."""
    return [ON_POLICY.key(context)] if context.task.training.on_policy else []


def _wanted(context: Context) -> bool:
    # A task that wants it no more gets the adapter of before back.
    return context.task.training.on_policy or ON_POLICY.name in context.run.state["steps"]


def _facts(context: Context) -> list[Any]:
    wanted = context.task.training.on_policy
    return [_steps(context), context.task.generation.max_tokens] if wanted else []


def _steps(context: Context) -> int:
    training = context.task.training
    before = context.start.steps_of(context.task) if context.start else training.steps
    return training.on_policy_steps or max(1, before // FEWER)


def _make(context: Context, key: str) -> list[Path]:
    run, folder = context.run, context.run.on_policy
    student = run.stage(context.trained[-1])
    if not context.task.training.on_policy:
        run.forget(WEIGHED)
        return copy_adapter(student, run.adapter)
    answering = Answering(
        context=context,
        folder=folder,
        key=key,
        title="on_policy: answers",
        max_tokens=context.task.generation.max_tokens,
        adapter=student,
    )
    asked = context.records(context.last_stage, SPLIT)
    answers = answering.answers([prompt_tokens(record["messages"][:-1], context.base.tokenizer) for record in asked])
    pairs = zip(context.task.train, answers, strict=True)
    answered = [replace(one, answer=said, unlearned=one.spoken) for one, said in pairs]
    made = [*answering.files(len(answers)), write_records(folder, SPLIT, _records(context, answered))]
    rows, soft = _said(context, key, answered)
    plan = _plan(context, rows)
    made += soft + fit(context, [plan], key, "on_policy", start=student)
    run.forget(WEIGHED)
    return made + copy_adapter(plan.folder, run.adapter)


def _records(context: Context, answered: Sequence[Example]) -> list[Record]:
    """Return the last stage's records with the student's answers."""
    asked = context.records(context.last_stage, SPLIT)
    said = [Message(role="assistant", content=one.answer) for one in answered]
    return [{"messages": [*record["messages"][:-1], one]} for record, one in zip(asked, said, strict=True)]


def _said(context: Context, key: str, answered: Sequence[Example]) -> tuple[list[Row], list[Path]]:
    """Return the student's answers as rows of the last stage with what the teacher says, and the files of that."""
    prompted = prompted_rows(context, SPLIT, answered)
    limit = context.base.context
    fits = [len(row.tokens) <= limit for row in prompted]
    if left_out := fits.count(False):
        what = f"{left_out} of {len(fits)} answers of the student exceed the context of {limit} behind the whole prompt"
        context.warn(f"on_policy: {what} and are left out")
    kept = [row for row, fit in zip(prompted, fits, strict=True) if fit]
    files = SoftFiles(context.run.on_policy, key, len(kept))
    made = files.make(kept, teacher_loader(context), partial(context.progress, "on_policy: teacher"))
    pairs = zip(_records(context, answered), answered, fits, strict=True)
    asked = [tokenize(record, context.base.tokenizer, f"on_policy, {one.id}") for record, one, fit in pairs if fit]
    soft = [replace(said, reference=False) for said in files.read()]
    return [row._replace(soft=said) for row, said in zip(asked, soft, strict=True)], made


def _plan(context: Context, said: Sequence[Row]) -> StagePlan:
    """Return the work: the last stage's rows and the student's answers, as a stage after the last."""
    plan = stage_plan(context, context.last_stage, _steps(context), context.run.on_policy)
    plan = soft_plan(context, plan)
    return mixed(context, replace(plan, number=plan.number + 1, train=[*plan.train, *said]))


ON_POLICY = Step(name="on_policy", needs=(TRAIN,), facts=_facts, make=_make, wanted=_wanted, trains=True)
