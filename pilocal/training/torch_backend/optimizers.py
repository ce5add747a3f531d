"""The optimizer, as PyTorch has it, and the clipping of gradients before its step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from pilocal.task import OPTIMIZERS, Training


def make_optimizer(parameters: Sequence[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Return a fresh optimizer; the trainer sets its learning rate at every step."""
    chosen = OPTIMIZERS[training.optimizer]
    module, _, name = chosen.torch.rpartition(".")
    settings = chosen.torch_arguments(training.weight_decay)
    made: torch.optim.Optimizer = getattr(import_module(module), name)(parameters, lr=0.0, **settings)
    return made


def clip(parameters: Sequence[torch.nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradients down to a global norm of `largest`; return the norm that they had."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
    return norm


def get_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Any]:
    """Return what the optimizer remembers, as arrays named after the parameters, which `names` has in their order."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[number]}.{key}": torch.as_tensor(value).cpu().numpy()
        for number, remembered in state.items()
        for key, value in remembered.items()
    }


def set_state(optimizer: torch.optim.Optimizer, names: Sequence[str], arrays: Mapping[str, Any]) -> None:
    """Give a fresh optimizer what `get_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in arrays.items():
        parameter, _, key = name.rpartition(".")
        # Adafactor counts its steps in Python, the others in a tensor.
        plain = value.dtype.kind == "i"
        state.setdefault(names.index(parameter), {})[key] = int(value) if plain else torch.from_numpy(value.copy())
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
