"""Run folders that an earlier version of the code left in the middle of a training resume and end as they would have.

tests/runs holds a task, and its run on each backend by version 0.1.0, stopped after the fifth of nine steps (the
checkpoint is that of the fourth); `*-final.safetensors` is what an undisturbed training by that code ended with. Step
keys hold pilocal's version, so a new version needs runs of its own here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named

RUNS = Path(__file__).parent / "runs"


@pytest.fixture(params=["mlx", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def old(backend: str, tmp_path: Path) -> Path:
    """A copy of the task with its run, which was made elsewhere."""
    shutil.copytree(RUNS / "task", tmp_path / "task")
    shutil.copytree(RUNS / backend, tmp_path / "task" / "run")
    return tmp_path / "task"


def test_an_old_run_resumes_from_its_checkpoint_and_ends_as_it_would_have(old: Path, backend: str) -> None:
    first = (old / "run" / "stages" / "0" / "metrics.jsonl").read_bytes()
    begun = (old / "run" / "stages" / "1" / "metrics.jsonl").read_bytes().splitlines()[0]
    ran: dict[str, bool] = {}
    listeners = Listeners(step=lambda result: ran.update({result.name: not result.skipped}))
    with open_task(old, old / "schedule.toml", old / "run", listeners) as context:
        run_steps(context, step_named("train"))
    assert ran == {"compress": False, "index": False, "stages": False, "train": True}
    assert (old / "run" / "stages" / "0" / "metrics.jsonl").read_bytes() == first
    assert (old / "run" / "stages" / "1" / "metrics.jsonl").read_bytes().splitlines()[0] == begun
    final = load_file(old / "run" / "adapter" / "adapters.safetensors")
    expected = load_file(RUNS / f"{backend}-final.safetensors")
    assert final.keys() == expected.keys()
    for name, value in expected.items():
        # On the processor that made the runs they are equal; another one rounds otherwise.
        np.testing.assert_allclose(final[name], value, rtol=1e-3, atol=1e-5)
