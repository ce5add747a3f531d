"""metrics.jsonl: what is read is what was written, byte for byte, and damage is told apart from a line cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilocal.errors import RunError
from pilocal.run_folder.log import Decision, Log, StepLine, read_log

KEYS = ["step", "learning_rate", "loss", "gradient_norm", "trained_tokens", "prompt_tokens", "computed_tokens"]
KEYS += ["padding", "seconds", "peak_memory"]


def step_line(step: int, **more: Any) -> StepLine:
    figures: dict[str, Any] = {
        "learning_rate": 1 / 3,
        "loss": 4.871704368270002e-05,
        "gradient_norm": 0.25,
        "trained_tokens": 56,
        "prompt_tokens": 3384,
        "computed_tokens": 939,
        "padding": 0.0511,
        "seconds": 0.5,
        "peak_memory": 1 << 30,
    }
    return StepLine(step=step, **figures, **more)


DECISION = Decision(next_valid_loss=0.5, margin=0.1, steps_left=3, moves_on=False)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    log = Log(tmp_path / "metrics.jsonl")
    for line in (step_line(1), step_line(2, valid_loss=0.4), step_line(3, valid_loss=0.5, decision=DECISION)):
        log.append(line)
    return log.path


def test_a_line_has_its_keys_in_their_order_and_only_those_that_it_has(written: Path) -> None:
    lines = [json.loads(text) for text in written.read_text().splitlines()]
    assert [list(line) for line in lines] == [KEYS, [*KEYS, "valid_loss"], [*KEYS, "valid_loss", "decision"]]
    assert list(lines[2]["decision"]) == ["next_valid_loss", "margin", "steps_left", "moves_on"]


def test_what_is_read_and_written_again_is_the_same_bytes(written: Path) -> None:
    before = written.read_bytes()
    log = Log(written)
    assert log.lines[2].decision == DECISION
    log.forget_after(3)
    assert written.read_bytes() == before
    log.forget_after(1)
    assert [line.step for line in read_log(written)] == [1]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_last_line_that_was_cut_short_is_left_out(cut: int, written: Path) -> None:
    written.write_bytes(written.read_bytes()[: -1 - cut])
    assert [line.step for line in read_log(written)] == [1, 2]


@pytest.mark.parametrize("damage", ["{", "7", '{"step": 1}', '{"steps": 1}'])
def test_another_damaged_line_is_named(damage: str, written: Path) -> None:
    lines = written.read_text().splitlines()
    written.write_text("\n".join([lines[0], damage, lines[2]]) + "\n")
    with pytest.raises(RunError, match=r"metrics.jsonl:2: damaged: .*; delete"):
        read_log(written)


def test_patience_counts_from_the_lowest_validation_loss(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    assert read_log(log.path) == []
    for step, loss in enumerate([None, 0.5, 0.4, None, 0.6, 0.4], 1):
        assert not log.is_stale(2)
        log.append(step_line(step, valid_loss=loss))
    assert log.lowest() == 0.4
    assert log.is_stale(2)
    assert not log.is_stale(3)
    assert not log.is_stale(None)
    assert log.speed() == "6,880 tokens/s  1.00 GiB"
