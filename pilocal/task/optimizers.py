"""The optimizers that a task can name: one row each, from which both backends and the memory plan are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """One optimizer, as each backend has it; the loop sets the learning rate at every step."""

    remembered: int
    """Numbers that it keeps for an adapter weight from step to step."""
    decays: bool = True
    """Whether it takes the task's weight_decay."""
    mlx: str
    """Its class in mlx.optimizers."""
    mlx_settings: Mapping[str, Any] = field(default_factory=dict)
    torch: str
    """Its module and class for PyTorch."""
    torch_settings: Mapping[str, Any] = field(default_factory=dict)

    def mlx_arguments(self, weight_decay: float) -> dict[str, Any]:
        """Return what its class in MLX takes beside the learning rate."""
        return {**self.mlx_settings, **({"weight_decay": weight_decay} if self.decays else {})}

    def torch_arguments(self, weight_decay: float) -> dict[str, Any]:
        """Return what its class for PyTorch takes beside the parameters and the learning rate."""
        return {**self.torch_settings, **({"weight_decay": weight_decay} if self.decays else {})}


_TORCH_ADAM: Mapping[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}

OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer(
        remembered=2,
        mlx="AdamW",
        mlx_settings={"bias_correction": True},
        torch="torch.optim.AdamW",
        torch_settings=_TORCH_ADAM,
    ),
    "adam": Optimizer(
        remembered=2,
        decays=False,
        mlx="Adam",
        mlx_settings={"bias_correction": True},
        torch="torch.optim.Adam",
        torch_settings=_TORCH_ADAM,
    ),
    # Factored second moments and no first one; it neither scales by the weights' size nor chooses its own step.
    "adafactor": Optimizer(
        remembered=0,
        mlx="Adafactor",
        mlx_settings={"scale_parameter": False, "relative_step": False},
        torch="transformers.Adafactor",
        torch_settings={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
}
"""Every optimizer by its name in task.toml; a new one is a row here."""
