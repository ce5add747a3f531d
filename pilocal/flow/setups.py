"""What every process of a training has to have itself, made from a task for the backend that was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilocal.base.base import Base, find_base
from pilocal.base.chat import ChatSettings
from pilocal.task import Task
from pilocal.training.backend import TORCH, Backend

if TYPE_CHECKING:
    from pilocal.flow.context import Context


def base_for(task: Task, *, weights: bool = True) -> Base:
    """Return the checked base of a task, which writes chats as the task wants; see `find_base`."""
    file = task.files.get("chat_template")
    chat = ChatSettings(template=task.chat_template, file=file, default_system=task.serving.default_system)
    return find_base(task.model, task.folder, chat, weights=weights)


def helping_setup(context: Context, base: Base | None = None) -> Any:
    """Return a training.protocol.Setup to ask a base, by default the run's, outside of a training.

    In PyTorch it knows the team, which has to help where the base is sharded.
    """
    options = {"team": context.team} if context.backend.name == TORCH and context.team is not None else {}
    return training_setup(context.task, base or context.base, context.backend, **options)


def training_setup(task: Task, base: Base, backend: Backend, **options: Any) -> Any:
    """Return a training.protocol.Setup: the backend's own, which takes `options`, such as the `team`."""
    settings: dict[str, Any] = {"base": base, "lora": task.lora, "training": task.training, **options}
    if backend.name == TORCH:
        from pilocal.training.torch_backend.setup import Setup as TorchSetup

        return TorchSetup(device=backend.device or "cpu", weights=backend.weights, **settings)
    from pilocal.training.mlx.setup import Setup

    return Setup(**settings)
