"""Chat JSONL for OpenAI's supervised fine-tuning, stage by stage.

A line is {"messages": [...]}; a message holds role and content, and an assistant's turn that is not to be learned
"weight": 0 (https://platform.openai.com/docs/api-reference/fine-tuning/chat-input). The last message is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilocal.flow.formats.order import Order, StageSet, asked_with, stage_line, write_order
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Record
from pilocal.run_folder.rows import write_records
from pilocal.task import Training

LEAST_ROWS = 10
"""OpenAI refuses a training file with fewer lines."""


def write_openai(
    stages: Sequence[StageSet], folder: Path, training: Training, warn: Callable[[str], None], residue: Preamble
) -> Order:
    """Write train.jsonl and valid.jsonl of every stage into `folder`, and the order in which to train them.

    `warn` is called for files that OpenAI would refuse. Raises RunError on a full disk.
    """
    lines = []
    for stage in stages:
        for split, records in (("train", stage.train), ("valid", stage.valid)):
            write_records(folder / str(stage.number), split, map(openai_record, records))
        # The host counts in whole epochs.
        epochs = max(1, round(stage.epochs(training.batch_size)))
        settings = {"n_epochs": epochs, "batch_size": training.batch_size}
        method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
        exact = round(stage.epochs(training.batch_size), 2)
        lines.append(stage_line(stage, epochs, schedule_epochs=exact, method=method))
    if len(stages[0].train) < LEAST_ROWS:
        warn(f"{folder}: OpenAI wants at least {LEAST_ROWS} training examples; these are {len(stages[0].train)}")
    order = Order(folder, lines, _how(folder, residue))
    write_order(order)
    return order


def openai_record(record: Record) -> dict[str, Any]:
    """Return a record as OpenAI reads it; of the assistant's turns, those of shots are not learned.

    >>> turns = [("user", "2+2"), ("assistant", "4"), ("user", "3+3"), ("assistant", "6")]
    >>> record = openai_record({"messages": [{"role": role, "content": text} for role, text in turns]})
    >>> [message.get("weight") for message in record["messages"]]
    [None, 0, None, None]
    """
    learned = {*record.get("learned", ()), len(record["messages"]) - 1}
    shown = [
        {**message, "weight": 0} if message["role"] == "assistant" and number not in learned else message
        for number, message in enumerate(record["messages"])
    ]
    return {"messages": shown}


def _how(folder: Path, residue: Preamble) -> list[str]:
    return [
        f"train them in this order; the files are in {folder}; order.json names them with each job's `method`",
        "the first job starts from a base that can be fine-tuned, every other from the model of the job before:",
        "model = client.fine_tuning.jobs.retrieve(job).fine_tuned_model",
        "tokens are counted with this task's base; the host's own count differs",
        f"after the last job, send {asked_with(residue)}" + ("" if residue else ": no template, no shots"),
    ]
