"""What every process of a training has to have itself, made from a task for the backend that was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.base.base import base_hash
from pilocal.task import Task
from pilocal.training.backend import TORCH, Backend


def training_setup(task: Task, base: Path, backend: Backend, **options: Any) -> Any:
    """Return a training.protocol.Setup: the backend's own, which takes `options`, such as the `team`."""
    settings: dict[str, Any] = {"model": task.model, "base": base, "base_sha256": base_hash(base)}
    settings |= {"lora": task.lora, "training": task.training, **options}
    if backend.name == TORCH:
        from pilocal.training.torch_backend.setup import Setup as TorchSetup

        return TorchSetup(device=backend.device or "cpu", weights=backend.weights, **settings)
    from pilocal.training.mlx.setup import Setup

    return Setup(**settings)
