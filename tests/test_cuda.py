"""PyTorch on a GPU: what the CPU computes, in less time. Needs torch, transformers, peft and pytest alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilocal.parity.reference import load_reference
from pilocal.parity.replay import Replay, Trace
from pilocal.progress import silent
from pilocal.training.backend import PACKED, UNPACKED
from pilocal.training.row_order import StagePlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with CUDA")

REFERENCE = Path(__file__).parent / "parity" / "starter"


@pytest.fixture(scope="module")
def recorded() -> tuple[Replay, Trace]:
    """The starter's rows, and the adapter that a training on MLX began with."""
    replay, trace, _ = load_reference(REFERENCE)
    return replay, trace


@pytest.mark.parametrize("weights", [UNPACKED, PACKED])
def test_cuda_has_the_cpus_losses_and_gradients(recorded: tuple[Replay, Trace], weights: str) -> None:
    from pilocal.training.torch_backend.trainer import TorchTrainer

    replay, trace = recorded
    cpu = TorchTrainer(replay.base, replay.lora, replay.training, trace.starts[0], device="cpu")
    gpu = TorchTrainer(replay.base, replay.lora, replay.training, trace.starts[0], device="cuda", weights=weights)
    steps = [step for stage in replay.stages for step in stage.steps]
    loss, expected = cpu.gradients(steps[0].rows)
    found_loss, found = gpu.gradients(steps[0].rows)
    assert found_loss == pytest.approx(loss, rel=1e-4)
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) <= 1e-3 * np.linalg.norm(value) + 1e-12, name
    for number, step in enumerate(steps):
        reached = cpu.step(number, step.rate, step.rows)[0]
        assert gpu.step(number, step.rate, step.rows)[0] == pytest.approx(reached, rel=1e-3)


def test_cuda_trains_in_bfloat16_and_tells_its_peak(recorded: tuple[Replay, Trace], tmp_path: Path) -> None:
    from pilocal.training.loop import train
    from pilocal.training.torch_backend.setup import Setup

    replay, _ = recorded
    training = replace(replay.training, precision="bfloat16", recompute=True, accumulate=2, validate_every=2)
    lora = replace(replay.lora, dropout=0.0)
    facts: Any = {"base": replay.base}
    rows = [row for step in replay.stages[0].steps for row in step.rows]
    plans = [StagePlan(0, rows, rows[:2], 3, tmp_path / "stage")]
    train(
        Setup(lora=lora, training=training, device="cuda", **facts),
        plans,
        key="key",
        progress=silent,
        warn=lambda text: None,
    )
    lines = [json.loads(line) for line in (tmp_path / "stage" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(0 < line["peak_memory"] < 2**32 for line in lines)
