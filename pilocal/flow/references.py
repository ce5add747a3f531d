"""What the gate and the arms of a run are compared with: the trained model in MLX, or in PyTorch if there is none."""

from __future__ import annotations

from pathlib import Path

from pilocal.base.base import Base
from pilocal.base.device import on_cpu
from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel
from pilocal.flow.context import Context
from pilocal.flow.setups import training_setup
from pilocal.packages import is_installed
from pilocal.training.backend import TORCH


def has_accelerator(context: Context) -> bool:
    """Tell whether what `reference_loader` loads is computed by more than a CPU."""
    if context.backend.name != TORCH or is_installed("mlx"):
        return not on_cpu()
    return context.backend.device != "cpu"


def reference_loader(context: Context) -> LoadReference:
    """Return what loads the model to compare with; warns where PyTorch takes MLX's place."""
    if context.backend.name != TORCH or is_installed("mlx"):
        return MlxReference
    context.warn("MLX is not installed: PyTorch computes what the tables call MLX")

    def load(base: Base, adapter: Path | None) -> ReferenceModel:
        from pilocal.training.torch_backend.reference import TorchReference

        return TorchReference(training_setup(context.task, base, context.backend), adapter)

    return load
