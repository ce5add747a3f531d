"""What changes inside logged prompts: found, named, written as slots, and put back to the byte."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pilocal.logs.exchange import OTHER_TEMPLATE, SPACES, TOO_LONG, UNCLEAR, LeftOut
from pilocal.logs.finding import find_templates
from pilocal.logs.frame import QUERY, Frame
from pilocal.logs.template import Template
from pilocal.prompt.render import render
from pilocal.server.prompt_stripping import KnownPrompt
from pilocal.server.slotted import shapes_of
from pilocal.task import Example, Task, load_task
from tests.made_logs import KINDS, NAMES, Message, date, made_logs, query, rules, said, sentence, texts, user
from tests.test_cli import pilocal
from tests.test_logs_finding import asked, exchanges
from tests.test_logs_folder import SPLITS, answered, chat, init, kept, left_out, lines, made, rng, write

SLOTTED = [number for number, log in enumerate(made_logs(len(KINDS))) if any(log.slots)]


def rows_of(task: Task) -> list[Example]:
    return [example for split in SPLITS for example in getattr(task, split) if not example.id.startswith("shot-")]


def system_of(messages: list[Message]) -> str:
    return next((message["content"] for message in messages if message["role"] == "system"), "")


@pytest.mark.parametrize("number", SLOTTED)
def test_template_and_slots_together_are_the_logged_prompt_and_the_server_reads_it_so(
    number: int, tmp_path: Path
) -> None:
    log = made_logs(len(KINDS))[number]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", log.rows))
    task = load_task(tmp_path / "task")
    known = KnownPrompt(task.template, task.train, shapes=shapes_of(task.slots, task.train))
    for example in rows_of(task):
        row = int(example.extra["source"].rpartition(":")[2]) - 1
        *sent, _ = log.rows[row]
        assert example.slots == log.slots[row]
        rendered = system_of([*render(task.template, (), example)["messages"]])
        assert rendered == (system_of(sent) or rendered)
        assert rendered in "\n\n".join(message["content"] for message in sent)
        assert known.find(sent) == ([user(log.queries[row])], example.slots)
