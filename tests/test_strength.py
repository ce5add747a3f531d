"""An adapter that is shipped weaker than it was trained, by a number or by what the validation examples allow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.errors import PilocalError
from pilocal.run_folder.adapter import read_adapter
from tests.test_flow import flow, make_task
from tests.test_on_policy import edit


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("strength") / "task", tiny_base.folder, steps=4)
    flow(folder)
    return folder


def ratio(folder: Path) -> float:
    """Return how much of what was trained last is in the run's adapter."""
    run = folder / "run"
    now, trained = (
        read_adapter(path).tensors for path in (run / "adapter", sorted((run / "stages").glob("[0-9]*"))[-1])
    )
    found = {
        round(float(np.linalg.norm(now[name]) / np.linalg.norm(trained[name])), 5)
        for name in now
        if name.endswith("lora_b")
    }
    (one,) = found
    return one


def set_strength(folder: Path, value: str) -> None:
    text = (folder / "task.toml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("strength = ")]
    where = kept.index("[export]") + 1
    (folder / "task.toml").write_text("\n".join([*kept[:where], f"strength = {value}", *kept[where:], ""]))


def test_a_number_weighs_what_is_shipped_and_1_brings_it_back_without_a_training(finished: Path) -> None:
    before = (finished / "run" / "adapter" / "adapters.safetensors").read_bytes()
    for value, weight in (("0.5", 0.5), ("1.5", 1.5), ("1.0", 1.0)):
        set_strength(finished, value)
        made = flow(finished)
        assert made["strength"] and made["retention"] and made["export"] and made["evaluate"] and not made["train"]
        assert ratio(finished) == weight
        assert not any(flow(finished).values())
    assert (finished / "run" / "adapter" / "adapters.safetensors").read_bytes() == before


def test_auto_goes_down_while_the_validation_score_stays(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are the model's, the scores are given: the tiny model gets nothing right at any strength."""
    scores = iter([0.5, 0.75, 0.5, 0.25])
    asked: list[int] = []

    def total(self: object, marks: np.ndarray) -> float:
        asked.append(len(marks))
        return next(scores)

    set_strength(finished, '"auto"')
    with monkeypatch.context() as patched:
        patched.setattr("pilocal.evaluate.scoring.metrics.Metric.total", total)
        flow(finished, "strength")
    told = json.loads((finished / "run" / "strength" / "strength.json").read_text())
    assert told["scores"] == {"1": 0.5, "0.9": 0.75, "0.8": 0.5, "0.7": 0.25}
    assert (told["strength"], ratio(finished), set(asked)) == (0.8, 0.8, {told["rows"]})
    said = {path.parent.parent.name for path in (finished / "run" / "strength").glob("*/answers/*.json")}
    assert said == {"1", "0.9", "0.8", "0.7"}
    flow(finished)
    assert json.loads((finished / "run" / "metrics.json").read_text())["strength"] == told


@pytest.mark.parametrize("value", ["0", "-1", "2.5", '"much"', "true"])
def test_other_strengths_are_refused(tmp_path: Path, tiny_base: Base, value: str) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    set_strength(folder, value)
    with pytest.raises(PilocalError, match="strength"):
        flow(folder)
    assert not (folder / "run").exists()


def test_a_dora_cannot_be_weighed(tmp_path: Path, tiny_base: Base) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    set_strength(folder, "0.5")
    edit(folder, "[lora]", '[lora]\nkind = "dora"')
    with pytest.raises(PilocalError, match="magnitudes cannot be weighed"):
        flow(folder)
