"""mix_prompt: some requests of every step are the task's own, behind the whole prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.mixing import mix_prompts
from pilocal.prompt.preamble import Preamble, bare
from pilocal.prompt.render import Record
from pilocal.task import Example, load_task
from tests.test_flow import flow
from tests.test_mix import mixing


def adapter_of(folder: Path) -> bytes:
    return (folder / "run" / "adapter" / "adapters.safetensors").read_bytes()


def test_half_of_them_may_be_the_task_s_own_behind_the_whole_prompt(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base, "mix_prompt = true")
    assert flow(folder, "train")["mix"]
    task = load_task(folder)
    records = [json.loads(line)["messages"] for line in (folder / "run/mix/train.jsonl").read_text().splitlines()]
    alone, prompted = records[:69], records[69:]
    assert [[turn["role"] for turn in turns] for turns in alone] == [["user", "assistant"]] * 69
    assert 1 <= len(prompted) <= 69
    assert {turns[0]["content"] for turns in prompted} == {task.template}
    asked = [turns[1]["content"] for turns in prompted]
    assert asked == [example.query for example in task.train if example.query in asked]
    assert all(turns[2]["role"] == "assistant" and turns[2]["content"] for turns in prompted)
    before = adapter_of(folder)
    assert not any(flow(folder, "train").values())
    (folder / "template.md").write_text(task.template.replace(task.template[:20], "Other words than before", 1))
    assert flow(folder, "train")["mix"]
    assert adapter_of(folder) != before


def test_a_prompt_that_leaves_no_room_is_told_by_its_file(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base, "mix_prompt = true")
    task = load_task(folder)
    with pytest.raises(InputError, match=r"template\.md: a request has more than \d+ tokens"):
        mix_prompts(replace(task, template=task.template * 200), tiny_base)
    with pytest.raises(InputError, match=r"others\.jsonl: a request has more than \d+ tokens"):
        (folder / "others.jsonl").write_text(json.dumps({"query": "what is red? " * 4000}) + "\n")
        mix_prompts(load_task(folder), tiny_base)


def test_a_general_request_that_leaves_no_room_is_told_by_its_file(tiny_base: Base, tmp_path: Path) -> None:
    folder = mixing(tmp_path / "task", tiny_base)
    (folder / "task.toml").write_text((folder / "task.toml").read_text().replace('mix_queries = "others.jsonl"\n', ""))
    long = Preamble("Rules. " * 4000).of
    with pytest.raises(InputError, match=r"general\.jsonl: a request has more than \d+ tokens"):
        mix_prompts(load_task(folder), tiny_base, lambda example: Record(messages=long(bare(example)["messages"], no)))


def no(example: Example, count: int) -> list[Example]:
    return []
