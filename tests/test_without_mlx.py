"""PyTorch trains where MLX cannot be imported, as on Windows or in an environment for a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.reference import MlxReference
from pilocal.evaluate.arms import ARMS
from pilocal.progress import silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.torch_backend.setup import Setup
from tests.forked import ROOT
from tests.test_flow import make_task

CODE = """
import sys
for name in ("mlx", "mlx.core", "mlx.nn", "mlx_lm"): sys.modules[name] = None
from pilocal.cli import main
main()
"""


def pilocal(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has no MLX."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def task(tmp_path: Path, tiny_base: Base) -> Path:
    return make_task(tmp_path / "task", tiny_base.folder, steps=4)


def test_check_plans(task: Path) -> None:
    done = pilocal("check", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--json")
    stages = json.loads(done.stdout)["stages"]
    assert [stage["shots"] for stage in stages] == [2, 1, 0]
    assert all(stage["peak_memory"] > 0 for stage in stages)


def test_run_trains_exports_and_evaluates(task: Path) -> None:
    pilocal("run", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--device", "cpu")
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert set(metrics["arms"]) == {arm.name for arm in ARMS}
    assert 0 <= metrics["same_answers"] <= 1
    assert (task / "run" / "export" / "adapter.gguf").is_file()


def test_training_starts_from_a_given_adapter(task: Path, tiny_base: Base, tmp_path: Path) -> None:
    from tests.tiny import make_adapter

    adapter = make_adapter(tmp_path / "adapter", tiny_base, rank=2)
    done = pilocal(
        "train", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--initial-adapter", adapter
    )
    assert "drawn by NumPy" not in done.stderr
    assert (task / "run" / "adapter" / "adapters.safetensors").is_file()


def test_pytorch_says_what_mlx_says(tiny_base: Base, tiny_adapter: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [(2040, *rng.integers(0, 2000, length).tolist()) for length in (5, 17, 9)]
    setup = Setup(base=tiny_base, lora=Lora(rank=4), training=Training(), device="cpu")
    for adapter in (None, tiny_adapter):
        ours, theirs = setup.reference(adapter), MlxReference(tiny_base, adapter)
        row = Row(prompts[1], 6)
        assert np.abs(ours.logits(row) - theirs.logits(row)).max() < 1e-4
        how: dict[str, Any] = {"max_tokens": 12, "batch_size": 2, "progress": silent, "name": "answers"}
        said = theirs.answer(prompts, ends=frozenset({2047}), **how)
        assert ours.answer(prompts, ends=frozenset({2047}), **how) == said
        # An end in the middle of an answer ends it.
        ends = frozenset({said[0][4], 2047})
        assert ours.answer(prompts, ends=ends, **how) == theirs.answer(prompts, ends=ends, **how)
