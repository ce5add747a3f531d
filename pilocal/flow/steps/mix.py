"""mix: the bare base's answers to unrelated requests, and what it says about each of their tokens, into RUN/mix.

They are asked as every request is: alone, or after what stays of the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.flow.answering import Answering
from pilocal.flow.context import Context
from pilocal.flow.mixing import mix_limit, mix_prompts, mix_queries
from pilocal.flow.soft_files import SoftFiles
from pilocal.flow.step import Step
from pilocal.flow.steps.compress import COMPRESS
from pilocal.flow.steps.index import INDEX
from pilocal.flow.steps.stages import residue_facts
from pilocal.flow.steps.teacher import teacher_loader
from pilocal.prompt.tokens import Row
from pilocal.run_folder.rows import read_rows, write_records
from pilocal.task import Example
from pilocal.training.row_order import StagePlan, Stream

SPLIT = "train"
"""The unrelated requests are trained on, and nothing else."""


def mixed(context: Context, plan: StagePlan) -> StagePlan:
    """Return a stage's work with the unrelated requests in every step, if the task wants any.

    Raises RunError when what the base says about them is missing.
    """
    if not MIX.wanted(context):
        return plan
    rows = _rows(context)
    said = _files(context, MIX.key(context), len(rows)).read()
    rows = [row._replace(soft=replace(soft, reference=False)) for row, soft in zip(rows, said, strict=True)]
    return replace(plan, beside=(*plan.beside, Stream(rows, context.task.training.mixed_rows)))


def _wanted(context: Context) -> bool:
    return context.task.training.mix > 0


def _facts(context: Context) -> list[Any]:
    training, precision = context.task.training, context.task.training.precision or "float32"
    settings = [training.distill_top_k, training.distill_temperature, precision, context.backend.name]
    asked = [mix_queries(context.task), mix_limit(context.task)]
    return [context.base.sha256, *asked, settings, *residue_facts(context)]


def _make(context: Context, key: str) -> list[Path]:
    task, folder = context.task, context.run.mix
    queries = mix_queries(task)
    answering = Answering(context=context, folder=folder, key=key, title="mix: answers", max_tokens=mix_limit(task))
    answers = answering.answers(mix_prompts(task, context.base, context.request))
    pairs = zip(queries, answers, strict=True)
    records = [context.request(Example(id="", query=query, answer=answer)) for query, answer in pairs]
    made = [*answering.files(len(queries)), write_records(folder, SPLIT, records)]
    show = partial(context.progress, "mix: teacher")
    return made + _files(context, key, len(queries)).make(_rows(context), teacher_loader(context), show)


def _rows(context: Context) -> list[Row]:
    return read_rows(context.run.mix, SPLIT, context.base.tokenizer)


def _files(context: Context, key: str, count: int) -> SoftFiles:
    return SoftFiles(context.run.mix, key, count)


MIX = Step(name="mix", also=(COMPRESS, INDEX), facts=_facts, make=_make, wanted=_wanted)
