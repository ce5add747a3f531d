"""Chat JSONL for OpenAI's supervised fine-tuning, stage by stage.

A line is {"messages": [...]}; a message holds role and content, and an assistant's turn that is not to be learned
"weight": 0 (https://platform.openai.com/docs/api-reference/fine-tuning/chat-input). The last message is the answer.
"""

from __future__ import annotations

from typing import Any

from pilocal.flow.formats.hosted import Host
from pilocal.flow.formats.order import StageSet
from pilocal.prompt.render import Record
from pilocal.task import Training


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


def _settings(stage: StageSet, epochs: int, training: Training) -> dict[str, Any]:
    settings = {"n_epochs": epochs, "batch_size": training.batch_size}
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": settings}}}


OPENAI = Host(
    title="OpenAI",
    line=openai_record,
    settings=_settings,
    least_rows=10,
    how=(
        "each job takes `method` from order.json",
        "the first job starts from a base that can be fine-tuned, every other from the model of the job before:",
        "model = client.fine_tuning.jobs.retrieve(job).fine_tuned_model",
    ),
)
"""As its guide has it (https://platform.openai.com/docs/guides/supervised-fine-tuning)."""
