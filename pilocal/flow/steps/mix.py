"""mix: the base's answers to the requests of `[training] mix`, and what it says about each token, into RUN/mix.

Unrelated ones are asked as every request is: alone, or after what stays of the prompt. With mix_prompt, the task's own
are asked after the whole prompt.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.flow.answering import Answering
from pilocal.flow.context import Context
from pilocal.flow.mixing import mix_limit, mix_prompts, mix_queries, mix_records
from pilocal.flow.soft_files import SoftFiles
from pilocal.flow.step import Step
from pilocal.flow.steps.compress import COMPRESS
from pilocal.flow.steps.index import INDEX
from pilocal.flow.steps.stages import residue_facts
from pilocal.flow.steps.teacher import teacher_loader
from pilocal.prompt.tokens import Row
from pilocal.run_folder.rows import read_rows, write_records
from pilocal.training.row_order import StagePlan, Stream

SPLIT = "train"
"""The requests are trained on, and nothing else."""


def mixed(context: Context, plan: StagePlan) -> StagePlan:
    """Return a stage's work with some of these requests in every step, if the task wants any.

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
    queries = mix_queries(context.task)
    own = [mix_records(context.task)[len(queries) :]] if training.mix_prompt else []
    return [context.base.sha256, queries, mix_limit(context.task), settings, *own, *residue_facts(context)]


def _make(context: Context, key: str) -> list[Path]:
    task, folder = context.task, context.run.mix
    records = mix_records(task, context.request)
    answering = Answering(context=context, folder=folder, key=key, title="mix: answers", max_tokens=mix_limit(task))
    answers = answering.answers(mix_prompts(task, context.base, context.request))
    for record, answer in zip(records, answers, strict=True):
        record["messages"][-1]["content"] = answer
    made = [*answering.files(len(records)), write_records(folder, SPLIT, records)]
    show = partial(context.progress, "mix: teacher")
    return made + _files(context, key, len(records)).make(_rows(context), teacher_loader(context), show)


def _rows(context: Context) -> list[Row]:
    return read_rows(context.run.mix, SPLIT, context.base.tokenizer)


def _files(context: Context, key: str, count: int) -> SoftFiles:
    return SoftFiles(context.run.mix, key, count)


MIX = Step(name="mix", also=(COMPRESS, INDEX), facts=_facts, make=_make, wanted=_wanted)
