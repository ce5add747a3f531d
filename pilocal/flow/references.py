"""What the gate and the arms of a run are compared with: the trained model in MLX, or in PyTorch if there is none."""

from __future__ import annotations

from pathlib import Path

from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel
from pilocal.flow.context import Context
from pilocal.flow.setups import training_setup
from pilocal.packages import is_installed
from pilocal.training.backend import TORCH


def reference_loader(context: Context) -> LoadReference:
    """Return what loads the model to compare with; warns where PyTorch takes MLX's place."""
    if context.backend.name != TORCH or is_installed("mlx"):
        return MlxReference
    context.warn("MLX is not installed: PyTorch computes what the tables call MLX")

    def load(base: Path, adapter: Path | None) -> ReferenceModel:
        from pilocal.training.torch_backend.reference import TorchReference

        return TorchReference(training_setup(context.task, base, context.backend), adapter)

    return load
