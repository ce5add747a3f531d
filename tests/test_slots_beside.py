"""Slots beside the task's own rows: synthesis, unrelated requests, and entries that are restated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.flow.mixing import mix_records
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import COMPRESS, INDEX, STAGES
from pilocal.synth.files import synthesize
from pilocal.task import Example, load_task
from tests.test_slots import DAYS, dated


def test_a_synthesis_is_refused_in_one_line(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"template.md:6: no values are made up for its slots \(today, user\)"):
        synthesize(dated(tmp_path / "task", tiny_base.folder))


def test_unrelated_requests_and_restated_entries_have_values_too(tiny_base: Base, tmp_path: Path) -> None:
    folder = dated(tmp_path / "task", tiny_base.folder)
    text = (folder / "task.toml").read_text().replace("batch_size = 4", "batch_size = 4\nrestate = 1")
    (folder / "task.toml").write_text(text)
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        for step in (COMPRESS, INDEX, STAGES):
            run_steps(context, step)
        for stage in range(3):
            for record in context.records(stage, "restated"):
                assert DAYS[0] in str(record["messages"][:-1]) or DAYS[1] in str(record["messages"][:-1])
                assert "{{" not in str(record["messages"][:-1])
        asked = context.request(Example(id="", query="Why is the sky blue?", answer=""))
        assert asked["messages"][0]["content"].startswith("today: 2026-11-2")
        assert asked == context.request(Example(id="", query="Why is the sky blue?", answer=""))


def test_requests_behind_the_whole_prompt_have_their_own_values(tiny_base: Base, tmp_path: Path) -> None:
    folder = dated(tmp_path / "task", tiny_base.folder)
    settings = 'batch_size = 4\nmix = 0.25\nmix_prompt = true\nmix_queries = "others.jsonl"'
    (folder / "others.jsonl").write_text("".join(json.dumps({"query": f"what is {n}?"}) + "\n" for n in range(9)))
    (folder / "task.toml").write_text((folder / "task.toml").read_text().replace("batch_size = 4", settings))
    task = load_task(folder)
    prompted = [record["messages"] for record in mix_records(task)[9:]]
    assert prompted
    for turns in prompted:
        (asked,) = [example for example in task.train if example.query == turns[1]["content"]]
        assert all(value in turns[0]["content"] for value in asked.slots.values())
        assert "{{" not in turns[0]["content"]
