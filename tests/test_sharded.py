"""A base that is sharded over processes: the numbers of one process, and a part of every layer in each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError
from pilocal.progress import silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.backend import PACKED, UNPACKED, shards, torchrun_rank
from pilocal.training.follow import follow
from pilocal.training.torch_backend.memory import estimate
from pilocal.training.torch_backend.passes import Pass, passes
from tests.forked import Forked, pilocal
from tests.test_flow import make_task
from tests.test_team import ends, read_until, tell
from tests.test_torch_run import SHARED, lines
from tests.test_torch_run import setup as torch_setup
from tests.test_torch_team import environments, launched
from tests.test_train import plans, random_rows, unexpected

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""

LORA = Lora(rank=4)


def launch(function: Any, *arguments: object) -> list[Forked]:
    """Start two processes that share a base."""
    return [Forked(function, *arguments, **variables, **FSDP) for variables in environments()]


def said(rows: list[Row]) -> list[Row]:
    """Return rows as if a model had said their completions."""
    from pilocal.prompt.soft import Soft

    def one(row: Row) -> Row:
        count = len(row.completion)
        return row._replace(soft=Soft(np.tile(np.arange(2, dtype=np.int32), (count, 1)), *likely(count), reference=False))

    return [one(row) for row in rows]


def likely(count: int) -> tuple[Any, Any]:
    return np.full((count, 2), -1.0, np.float32), np.full(count, np.log(1 - 2 / np.e), np.float32)


def steps() -> list[tuple[Training, list[Row]]]:
    """Return what differs between processes: numbers of rows, of parts, of kinds of rows, and what rows begin with."""
    together = random_rows(3, 9, 40, 2, 16)
    weighed = [row._replace(weight=2.0) for row in together[:2]] + together[2:5]
    return [
        (Training(), together[:3]),
        (Training(), together[:1]),
        (Training(accumulate=2), together[:5]),
        (Training(recompute=True), together[:3]),
        (Training(accumulate=2), weighed),
        (Training(), together[:3] + said(random_rows(4, 3, 2))),
    ]


def compute(base: Base, weights: str, team: Any = None) -> dict[str, Any]:
    """Return what a trainer computes of these steps, and the bytes of weights that it holds before and after."""
    from pilocal.training.torch_backend.adapter import draw
    from pilocal.training.torch_backend.trainer import TorchTrainer

    found: dict[str, Any] = {"losses": [], "valid": [], "norms": [], "held": []}
    for training, rows in steps():
        trainer = TorchTrainer(base, LORA, training, None, weights=weights, share=True, team=team)
        trainer.set_adapter({name: value + 0.01 for name, value in draw(trainer.shapes, 0).items()})
        found["held"].append(held(trainer.model))
        loss, gradients = trainer.gradients(rows)
        found["losses"].append(loss)
        found["norms"] += [float(np.abs(value).sum()) for value in gradients.values()]
        found["valid"].append(trainer.evaluate(rows)[0])
        found["held"].append(held(trainer.model))
    return found


def held(model: Any) -> int:
    parts = [value.to_local() if hasattr(value, "to_local") else value for value in model.parameters()]
    return sum({value.data_ptr(): value.untyped_storage().nbytes() for value in parts}.values())


def compute_in_team(folder: Path, weights: str) -> None:
    """Compute as one of two processes, and say what was found."""
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    torch.set_num_threads(1)
    team = TorchTeam.join("cpu")
    sys.stdout.write(json.dumps(compute(Base.at(folder), weights, team)))
    team.leave()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fixture", "weights"),
    [("tiny_base", PACKED), ("tiny_tied_base", PACKED), ("tiny_tied_base", UNPACKED), ("tiny_biased_base", UNPACKED)],
)
def test_every_step_is_that_of_one_process_which_holds_twice_as_much(
    fixture: str, weights: str, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(fixture)
    one = compute(base, weights)
    for status, found, fault in ends(launch(compute_in_team, base.folder, weights)):
        assert status == 0, fault
        assert "Warning" not in fault
        two = json.loads(found)
        for name in ("losses", "valid", "norms"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
        whole, adapter = one["held"][0], 4 * sum(a * b for a, b in adapter_shapes(base))
        ends_again = whole if "tied" in fixture else 0  # the two ends have the same weights, and a part each
        assert set(two["held"]) == {two["held"][0]}
        assert two["held"][0] - adapter < 0.55 * (whole - adapter) + ends_again // 4


def adapter_shapes(base: Base) -> list[tuple[int, int]]:
    from pilocal.training.torch_backend.trainer import TorchTrainer

    return list(TorchTrainer(base, LORA, Training(), None).shapes.values())
