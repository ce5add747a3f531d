"""JSONL for fine-tuning Amazon Nova on Amazon Bedrock, stage by stage.

A line has the version of its schema, the system message apart, and messages that alternate from the user to the
assistant (https://docs.aws.amazon.com/nova/latest/userguide/fine-tune-prepare-data-understanding.html). There are no
weights: every answer in a line is learned, those of shots and of earlier turns as well.
"""

from __future__ import annotations

from typing import Any

from pilocal.flow.formats.hosted import Host
from pilocal.flow.formats.order import StageSet
from pilocal.prompt.render import Record
from pilocal.task import Training

SCHEMA = "bedrock-conversation-2024"
"""The version of the schema."""

RESERVED = (
    *("System:", "SYSTEM:", "User:", "USER:", "Bot:", "BOT:", "Assistant:", "ASSISTANT:", "Thought:"),
    *("[EOS]", "<image>", "<video>"),
)
"""Texts that AWS's own validator refuses (aws-samples/amazon-bedrock-samples, nova_ft_dataset_validator.py)."""


def bedrock_record(record: Record) -> dict[str, Any]:
    """Return a record as Bedrock reads it.

    >>> turns = [("system", "Add."), ("user", "3+3"), ("assistant", "6")]
    >>> line = bedrock_record({"messages": [{"role": role, "content": text} for role, text in turns]})
    >>> line["system"], line["messages"][0]
    ([{'text': 'Add.'}], {'role': 'user', 'content': [{'text': '3+3'}]})
    """
    system = [{"text": message["content"]} for message in record["messages"] if message["role"] == "system"]
    turns = [
        {"role": message["role"], "content": [{"text": message["content"]}]}
        for message in record["messages"]
        if message["role"] != "system"
    ]
    return {"schemaVersion": SCHEMA, **({"system": system} if system else {}), "messages": turns}


def _settings(stage: StageSet, epochs: int, training: Training) -> dict[str, Any]:
    return {"hyperParameters": {"epochCount": str(epochs)}}


BEDROCK = Host(
    title="Amazon Bedrock",
    line=bedrock_record,
    settings=_settings,
    least_rows=8,
    most_rows=20_000,
    most_tokens=32_000,
    most_epochs=5,
    reserved=RESERVED,
    weights=False,
    how=(
        "put the files into S3; each job is a create_model_customization_job with customizationType FINE_TUNING",
        "and takes `hyperParameters` from order.json",
        "the first job's baseModelIdentifier is a Nova model, every other's the custom model of the job before;",
        "where Bedrock does not train a custom model further, train the last stage alone",
    ),
)
"""Rows and texts are those of AWS's validator for Nova Micro, Lite and Pro, the epochs those of its guide. For Nova no
longest row is published; the tokens are those of Claude 3 Haiku, which Bedrock trained with the same lines."""
