"""The optimizer and its learning rate, by their formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pilocal.task import Training

BETAS, EPSILON = (0.9, 0.999), 1e-8


def learning_rate(step: int, total: int, training: Training) -> float:
    """Return the rate of a step, counted from 0 within the whole run of `total` steps.

    It rises in a straight line, in the share `warmup` of all steps and one step at least, to its peak; from there it
    falls to 0 as half a cosine or in a straight line, or stays.

    >>> [round(learning_rate(s, 100, Training(learning_rate=1.0, warmup=0.1)), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    rising = max(1, round(training.warmup * total))
    if step < rising:
        return training.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    falls = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return training.learning_rate * falls[training.lr_schedule]


def make_optimizer(parameters: Sequence[torch.nn.Parameter], training: Training) -> torch.optim.Optimizer:
    """Return a fresh optimizer; the trainer sets its learning rate at every step.

    AdamW decays weights apart from the gradient; Adafactor has factored second moments, no first one, and neither
    scales by the weights' size nor chooses its own step.
    """
    decay = training.weight_decay
    if training.optimizer == "adafactor":
        from transformers import Adafactor

        made: torch.optim.Optimizer = Adafactor(
            parameters, lr=0.0, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False
        )
        return made
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=0.0, betas=BETAS, eps=EPSILON)
    return torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=decay)


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


def set_state(optimizer: torch.optim.Optimizer, names: Sequence[str], arrays: dict[str, Any]) -> None:
    """Give a fresh optimizer what `get_state` returned."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in arrays.items():
        parameter, _, key = name.rpartition(".")
        # Adafactor counts its steps in Python, the others in a tensor.
        plain = value.dtype.kind == "i"
        state.setdefault(names.index(parameter), {})[key] = int(value) if plain else torch.from_numpy(value.copy())
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
