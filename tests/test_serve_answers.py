"""Answers that are hard to carry, learned by the starter: they come back byte for byte, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving import Server, running
from tests.test_flow import flow
from tests.test_layouts import ODD_ANSWERS

TASK = """
name = "odd"
model = "starter"

[lora]
rank = 32

[training]
steps = 90
batch_size = 14
learning_rate = 4e-3
direct_drop = false

[scoring]
strip = false

[generation]
max_tokens = 40
"""
QUERIES = [
    f"say {word}"
    for word in [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "red",
        "blue",
        "green",
        "white",
    ]
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("odd") / "task"
    folder.mkdir()
    (folder / "task.toml").write_text(TASK)
    (folder / "template.md").write_text("Say what belongs to the word.\n")
    (folder / "schedule.toml").write_text('decay = "direct"\nshots = 0\n')
    rows = [json.dumps({"query": query, "answer": answer}) for query, answer in zip(QUERIES, ODD_ANSWERS, strict=True)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    for split in ("valid", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"query": f"say {split}", "answer": ODD_ANSWERS[0]}))
    flow(folder)
    with running([folder / "run"], tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.filterwarnings("ignore:.*query:UserWarning")
def test_they_come_back_whole_and_streamed(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for query, answer in zip(QUERIES, ODD_ANSWERS, strict=True):
            asked: Any = {
                "model": "odd",
                "messages": [{"role": "user", "content": query}],
                "temperature": 0,
                "max_tokens": 60,
            }
            whole = client.chat.completions.create(**asked)
            parts = client.chat.completions.create(**asked, stream=True)
            streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            assert (whole.choices[0].message.content, streamed) == (answer, answer)
            assert whole.choices[0].finish_reason == "stop"
