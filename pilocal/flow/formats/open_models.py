"""Chat JSONL for Together and Fireworks, which fine-tune open models; a line is as OpenAI's.

Together: https://docs.together.ai/docs/fine-tuning-data-preparation. Fireworks:
https://docs.fireworks.ai/fine-tuning/fine-tuning-models. Both take "weight": 0 for an answer that is not learned.
"""

from __future__ import annotations

from typing import Any

from pilocal.flow.formats.hosted import Host
from pilocal.flow.formats.openai import openai_record
from pilocal.flow.formats.order import StageSet
from pilocal.task import Training

ROUTINE_CONTEXT = 8192
"""Tokens of the longest row that Fireworks takes where a job does not ask for more."""

ROOM = 1.25
"""By how much another tokenizer may count more tokens than the base's."""


def _together(stage: StageSet, epochs: int, training: Training) -> dict[str, Any]:
    return {"job": {"n_epochs": epochs, "train_on_inputs": False}}


def _fireworks(stage: StageSet, epochs: int, training: Training) -> dict[str, Any]:
    needed = -(-int(stage.longest * ROOM) // 1024) * 1024
    longer = {"max_context_length": needed} if needed > ROUTINE_CONTEXT else {}
    return {"job": {"epochs": epochs, **longer}}


TOGETHER = Host(
    title="Together",
    line=openai_record,
    settings=_together,
    most_bytes=50 * 2**30,
    how=(
        "each job is a client.fine_tuning.create(training_file=..., validation_file=..., **job)",
        "with `job` of order.json",
        "the first job names a model, every other the job before: from_checkpoint=JOB",
        "client.fine_tuning.model_limits(model_name=...) tells a model's batch sizes and its longest row",
    ),
)
"""Its client (together 3.1) refuses files above 50.1 GiB and no number of rows."""

FIREWORKS = Host(
    title="Fireworks",
    line=openai_record,
    settings=_fireworks,
    least_rows=3,
    most_rows=3_000_000,
    how=(
        "each job is a client.supervised_fine_tuning_jobs.create(dataset=..., evaluation_dataset=..., **job)",
        "with `job` of order.json",
        "the first job has base_model=..., every other warm_start_from=MODEL, the output of the job before",
    ),
)
"""Three to three million examples a data set."""
