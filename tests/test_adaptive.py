"""Adaptive stages end once the next prompt is as good, and decide the same when they are interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.task import Training
from tests.test_train import adapter_bytes, fit


def read_log(folder: Path, stage: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / str(stage) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("margin", [1e9, 0.0])
def test_an_adaptive_stage_ends_once_the_next_prompt_is_as_good(margin: float, tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.task.schedule import Adaptive

    steps = (9, 6, 5)
    fit(tiny_base, tmp_path, ADAPTED, steps, adaptive=Adaptive(margin=margin, least=0.34))
    logs = [read_log(tmp_path, stage) for stage in range(3)]
    if margin:
        assert [log[-1]["step"] for log in logs] == [3, 5, 20]  # at the first look
    for log, latest in zip(logs[:-1], (9, 15), strict=True):
        decisions = [line["decision"] | {"valid_loss": line["valid_loss"]} for line in log if "decision" in line]
        assert decisions
        for made in decisions:
            better = made["next_valid_loss"] - made["valid_loss"] < made["margin"] == margin
            assert made["moves_on"] == (better or not made["steps_left"])
        assert [made["moves_on"] for made in decisions] == [False] * (len(decisions) - 1) + [True]
        assert log[-1]["step"] + decisions[-1]["steps_left"] == latest
    assert sum(map(len, logs)) == logs[-1][-1]["step"] == sum(steps)
    assert not any("decision" in line for line in logs[-1])


ADAPTED = Training(batch_size=4, learning_rate=1e-2, checkpoint_every=2, validate_every=4, seed=3)


@pytest.mark.parametrize("stop_at", [2, 3, 4, 5, 6, 9])
def test_an_adaptive_run_that_is_interrupted_makes_the_same_decisions(
    stop_at: int, tiny_base: Base, tmp_path: Path
) -> None:
    from pilocal.task.schedule import Adaptive

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    adaptive = Adaptive(margin=1e9, least=0.5)
    fit(tiny_base, tmp_path / "whole", ADAPTED, adaptive=adaptive)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base, tmp_path / "cut", ADAPTED, adaptive=adaptive, progress=stop)
    fit(tiny_base, tmp_path / "cut", ADAPTED, adaptive=adaptive)
    for stage in (0, 1):
        cut, whole = read_log(tmp_path / "cut", stage), read_log(tmp_path / "whole", stage)
        assert [line.get("decision") for line in cut] == [line.get("decision") for line in whole]
    assert adapter_bytes(tmp_path / "cut") == adapter_bytes(tmp_path / "whole")
