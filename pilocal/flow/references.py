"""What a run's adapter is compared with: the trained model in MLX or in PyTorch.

The gate and the arms take MLX's, or PyTorch's where there is no MLX. What is measured within one program takes the one
that trained.
"""

from __future__ import annotations

from pathlib import Path

from pilocal.base.base import Base
from pilocal.base.device import on_cpu
from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel
from pilocal.flow.context import Context
from pilocal.flow.setups import training_setup
from pilocal.packages import is_installed
from pilocal.training.backend import NF4, TORCH


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
    return _torch_loader(context)


def trainer_loader(context: Context) -> LoadReference:
    """Return what loads the model in the program that trained it, for figures that both programs give alike.

    It is MLX's after all where that alone has an accelerator, and where PyTorch trained on a base that it had rounded.
    """
    if context.backend.name != TORCH or not is_installed("mlx"):
        return reference_loader(context)
    slower = context.backend.device == "cpu" and has_accelerator(context)
    return MlxReference if slower or context.backend.weights == NF4 else _torch_loader(context)


def _torch_loader(context: Context) -> LoadReference:
    def load(base: Base, adapter: Path | None) -> ReferenceModel:
        from pilocal.training.torch_backend.reference import TorchReference

        return TorchReference(training_setup(context.task, base, context.backend), adapter)

    return load
