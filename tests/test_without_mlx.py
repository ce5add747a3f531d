"""PyTorch trains where MLX cannot be imported, as on Windows or in an environment for a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import ROOT
from tests.test_flow import make_task

torch = pytest.importorskip("torch")

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
def task(tmp_path: Path, tiny_base: Path) -> Path:
    return make_task(tmp_path / "task", tiny_base, steps=4)


def test_check_plans(task: Path) -> None:
    done = pilocal("check", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--json")
    stages = json.loads(done.stdout)["stages"]
    assert [stage["shots"] for stage in stages] == [2, 1, 0]
    assert all(stage["peak_memory"] > 0 for stage in stages)


def test_run_trains_exports_and_evaluates(task: Path) -> None:
    pilocal("run", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--device", "cpu")
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert set(metrics["arms"]) == {
        "base_query_only",
        "base_full_prompt",
        "base_full_prompt_cached",
        "internalized",
        "shipped",
    }
    assert (task / "run" / "export" / "adapter.gguf").is_file()


def test_training_starts_from_a_given_adapter(task: Path, tiny_base: Path, tmp_path: Path) -> None:
    from tests.tiny import make_adapter

    adapter = make_adapter(tmp_path / "adapter", tiny_base, rank=2)
    with (task / "task.toml").open("a") as file:
        file.write("")
    done = pilocal(
        "train", task, "--schedule", task / "schedule.toml", "--backend", "torch", "--initial-adapter", adapter
    )
    assert "drawn by NumPy" not in done.stderr
    assert (task / "run" / "adapter" / "adapters.safetensors").is_file()


def test_parity_replays_a_reference() -> None:
    result = json.loads(pilocal("parity", "--reference", "tests/parity/starter", "--json").stdout)
    assert result["exceeded"] == []
