"""What a run's adapter is compared with: the trained model in MLX or in PyTorch.

The gate and the arms take MLX's, or PyTorch's where there is no MLX. What is measured within one program takes
PyTorch's where that alone has an accelerator.
"""

from __future__ import annotations

from pathlib import Path

from pilocal.base.base import Base
from pilocal.base.device import on_cpu
from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel
from pilocal.flow.context import Context
from pilocal.flow.setups import helping_setup
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
    """Return what loads the model for figures that lie within one program, which both programs give alike.

    It is PyTorch's where that trained on an accelerator and MLX has none; elsewhere as `reference_loader` says. On a
    CPU both take as long. A base that PyTorch has rounded is another one than is served.
    """
    backend = context.backend
    if backend.name != TORCH or backend.device == "cpu" or backend.weights == NF4 or has_accelerator(context):
        return reference_loader(context)
    return _torch_loader(context)


def _torch_loader(context: Context) -> LoadReference:
    def load(base: Base, adapter: Path | None) -> ReferenceModel:
        model: ReferenceModel = helping_setup(context, base).reference(adapter)
        return model

    return load
