"""Processes that train together: this one leads or follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pilocal.errors import InputError
from pilocal.flow.context import Context
from pilocal.flow.setups import base_for, training_setup
from pilocal.flow.step import Step
from pilocal.flow.steps import STEPS
from pilocal.task import load_task
from pilocal.training.backend import TORCH, Backend, torchrun_rank
from pilocal.training.follow import follow
from pilocal.training.team import Team


@contextmanager
def leading(context: Context) -> Iterator[None]:
    """Lead the processes that were launched with this one, if any, while the block lasts.

    Raises TrainingError when they do not connect.
    """
    if context.backend.name == TORCH:
        from pilocal.training.torch_backend.team import TorchTeam

        context.team = TorchTeam.join(context.backend.device or "cpu")
    else:
        from pilocal.training.mlx.team import MlxTeam, launched_rank

        context.team = MlxTeam() if launched_rank() is None else MlxTeam.join()
    try:
        yield
    finally:
        context.team.end()


def follow_leader(task_folder: Path, last: Step, backend: Backend | None = None) -> bool:
    """Help to train a task if this process was launched for that; return whether it was.

    Of the processes that `mlx.launch` starts (`torchrun` for PyTorch), all but the first compute shares of its batches
    and write nothing. In steps that do not train, they have nothing to do. They need a copy of the task folder and the
    base. Raises TrainingError when the first process is gone, or has other settings.
    """
    trains = any(last.uses(step) for step in STEPS if step.trains)
    if backend is not None and backend.name == TORCH:
        return _follow_in_torch(task_folder, trains, backend)
    if torchrun_rank() is not None:
        fix = "add --backend torch, or start the processes with mlx.launch"
        raise InputError("torchrun", "these processes can train together only with PyTorch", fix=fix)
    from pilocal.training.mlx.team import MlxTeam, launched_rank

    if not launched_rank():
        return False
    if trains:
        _follow(task_folder, Backend(), MlxTeam.join)
    return True


def _follow_in_torch(task_folder: Path, trains: bool, backend: Backend) -> bool:
    if not torchrun_rank():
        return False
    if trains:
        from pilocal.training.torch_backend.device import find_device

        device = find_device(backend.device)
        from pilocal.training.torch_backend.team import TorchTeam

        _follow(task_folder, replace(backend, device=device), partial(TorchTeam.join, device))
    return True


def _follow(task_folder: Path, backend: Backend, join: Callable[[], Team]) -> None:
    task = load_task(task_folder)
    follow(training_setup(task, base_for(task), backend, team=join()))
