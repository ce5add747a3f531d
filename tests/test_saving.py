"""What a run will save in every request: tokens, time and money, and when the training is paid for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.export.lossless import cached_base
from pilocal.flow.saving import Prices, Saving
from tests.test_cli import pilocal as command
from tests.test_flow import make_task


def test_the_tokens_are_those_of_the_first_and_the_last_stage(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    plan = pilocal.check(task, schedule=task / "schedule.toml", run=task / "run", probe=False, gap=False)
    found = plan.saving
    assert (found.before, found.after) == (plan.stages[0].prompt_tokens, plan.stages[-1].prompt_tokens)
    assert found.before > 2 * found.after
    pilocal.run(task, schedule=task / "schedule.toml", run=task / "run", until="train")
    read = sum(
        line["trained_tokens"] + line["prompt_tokens"]
        for file in sorted((task / "run" / "stages").glob("*/metrics.jsonl"))
        for line in map(json.loads, file.read_text().splitlines())
    )
    assert found.trained == pytest.approx(read, rel=0.1)  # so few steps do not see every row as often
    assert (found.seconds, found.first_ms, found.requests_in_time) == (None, None, None)
    assert found.requests == pytest.approx(found.trained / (found.before - found.after), abs=1)


def test_a_base_in_gguf_is_timed_with_the_prompt_and_without(tiny_base: Base, tmp_path: Path) -> None:
    gguf = export_fused(tiny_base, None, tmp_path / "model.gguf", "q8_0")
    task = make_task(tmp_path / "task", gguf)
    found = pilocal.check(task, schedule=task / "schedule.toml").saving
    assert found.first_ms is not None
    assert found.seconds is not None
    assert min(found.first_ms) > 0 < found.seconds


def test_a_base_that_was_exported_before_is_timed_as_well(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    cached_base(tiny_base)
    found = pilocal.check(task, schedule=task / "schedule.toml", probe=False, gap=True).saving
    assert found.first_ms is not None
    assert min(found.first_ms) > 0


def test_what_saves_nothing_is_never_paid_for() -> None:
    same = Saving(10, 10, 500, 3.0, (2.0, 2.5))
    assert (same.requests, same.requests_in_time) == (None, None)
    assert same.requests_in_money(Prices(prompt=1, training=1)) is None
    less = Saving(110, 10, 500, 3.0, (32.0, 2.0))
    assert (less.requests, less.requests_in_time) == (5, 100)
    assert less.requests_in_money(Prices(prompt=2, training=6)) == 15
    assert less.requests_in_money(Prices(prompt=0, training=6)) is None


def test_check_tells_it(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    asked = ("check", task, "--schedule", task / "schedule.toml", "--no-probe")
    done = command(*asked, "--price", "100", "--training-price", "300")
    saving = json.loads(command(*asked, "--json").stdout)["saving"]
    rows = {
        line[:22].strip(): line[22:].split() for line in done.stdout.partition("What a request saves")[2].splitlines()
    }
    assert rows["prompt tokens"][:2] == [f"{saving['before']:.1f}", f"{saving['after']:.1f}"]
    assert int(rows["money, a million times"][3]) == pytest.approx(3 * int(rows["prompt tokens"][3]), abs=3)
    refused = command(*asked, "--training-price", "300")
    assert refused.returncode != 0
    assert refused.stderr.endswith("--training-price: needs --price; give both\n")
