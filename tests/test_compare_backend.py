"""How the arms of a comparison are trained: with another backend, which is remembered, and without the ablation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.comparison import Design, compare, parse_arms
from pilocal.comparison.comparison import open_comparison
from tests.forked import pilocal
from tests.test_flow import make_task


def test_a_comparison_trains_in_pytorch_and_remembers_it(tiny_base: Base, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    task, out = make_task(tmp_path / "task", tiny_base.folder, steps=6), tmp_path / "out"
    design, told = Design(arms=parse_arms(("direct",)), seeds=(0,)), list[str]()
    table = compare(task, design, run=out, backend="torch", report=lambda name, _: told.append(name))
    assert told == ["query-only", "full-prompt", "direct-seed0"]
    assert table["backend"] == json.loads((out / "run.json").read_text())["backend"]["name"] == "torch"
    assert json.loads((out / "runs" / "direct-seed0" / "run.json").read_text())["backend"]["name"] == "torch"
    assert "6 optimizer steps in PyTorch" in (out / "compare.md").read_text()
    again = compare(task, design, run=out, report=lambda name, _: pytest.fail(name))
    assert again == table
    told.clear()
    assert compare(task, design, run=out, backend="mlx", report=lambda name, _: told.append(name))["backend"] == "mlx"
    assert told == ["direct-seed0"], "the base's arms are the same"


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--device", "cpu"), 2, "pilocal compare: --device belongs to --backend torch"),
        (("--backend", "torch", "--device", "cpu", "--initial-adapter", "tests"), 1, "tests: no adapters.safetensors"),
    ],
)
def test_a_backend_that_cannot_be_is_one_line_before_any_work(
    options: tuple[str, ...], status: int, said: str, tiny_base: Base, tmp_path: Path
) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder, steps=6)
    done = pilocal("compare", task, "--run", tmp_path / "out", *options)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert done.stderr.startswith(said)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_task_whose_ablation_has_steps_of_its_own_is_compared_without_it(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    file = task / "task.toml"
    file.write_text(file.read_text().replace("[training]", "[training]\ndirect_drop_steps = 3"))
    with open_comparison(task, tmp_path / "out", Design(arms=parse_arms(("direct",)))) as comparison:
        training = comparison.task.training
    assert (training.direct_drop, training.direct_drop_steps) == (False, None)
