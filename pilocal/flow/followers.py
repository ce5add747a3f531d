"""Processes that train together: this one leads them or follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.base.base import Base, find_base
from pilocal.base.load import load_base
from pilocal.errors import InputError
from pilocal.flow.context import Context
from pilocal.flow.step import Step
from pilocal.flow.steps import STEPS
from pilocal.task import Task, load_task
from pilocal.training.backend import TORCH, Backend, torchrun_rank


@contextmanager
def leading(context: Context) -> Iterator[None]:
    """Lead the processes that were launched with this one while the block lasts; alone, that is none.

    Raises TrainingError when they do not come.
    """
    if context.backend.name == TORCH:
        from pilocal.training.torch_backend.team import Team as TorchTeam

        context.team = TorchTeam.join(context.backend.device or "cpu")
    else:
        from pilocal.training.mlx.team import Team, launched_rank

        context.team = Team() if launched_rank() is None else Team.join()
    try:
        yield
    finally:
        context.team.end()


def follow_leader(task_folder: Path, last: Step, backend: Backend | None = None) -> bool:
    """Help to train a task if this process was launched to, and return whether it was.

    Of the processes that `mlx.launch` starts (`torchrun`, with PyTorch as `backend`), all but the first compute shares
    of its batches and write nothing; in the steps up to `last` that train nothing they have nothing to do. They need a
    copy of the task folder and the base. Raises TrainingError when the first is gone, or has other settings.
    """
    trains = any(last.uses(step) for step in STEPS if step.trains)
    if backend is not None and backend.name == TORCH:
        return _follow_in_torch(task_folder, trains, backend)
    if torchrun_rank() is not None:
        fix = "say --backend torch, or start the processes with mlx.launch"
        raise InputError("torchrun", "these processes train together in PyTorch alone", fix=fix)
    from pilocal.training.mlx.team import Team, launched_rank

    if not launched_rank():
        return False
    if not trains:
        return True
    from pilocal.training.mlx.follow import follow
    from pilocal.training.mlx.loop import same_everywhere

    task = load_task(task_folder)
    base = find_base(task.model, task.folder)
    same = same_everywhere({"base_sha256": base.sha256}, task.lora, task.training)
    follow(Team.join(), lambda: load_base(base, precision=task.training.precision), task.lora, task.training, same)
    return True


def _follow_in_torch(task_folder: Path, trains: bool, backend: Backend) -> bool:
    if not torchrun_rank():
        return False
    if trains:
        from pilocal.training.torch_backend.device import find_device

        device = find_device(backend.device)
        from pilocal.training.torch_backend.loop import follow
        from pilocal.training.torch_backend.team import Team

        task = load_task(task_folder)
        setup = torch_setup(task, find_base(task.model, task.folder), replace(backend, device=device))
        follow(Team.join(device), setup)
    return True


def torch_setup(task: Task, base: Base, backend: Backend) -> Any:
    """Return what every process of a training in PyTorch has to have itself, a torch_backend.loop.Setup."""
    from pilocal.training.torch_backend.loop import Setup

    return Setup(
        base=base,
        lora=task.lora,
        training=task.training,
        device=backend.device or "cpu",
        weights=backend.weights,
    )
