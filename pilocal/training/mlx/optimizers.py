"""The optimizer, as MLX has it."""

from __future__ import annotations

from typing import Any

import mlx.optimizers as optim

from pilocal.task import OPTIMIZERS, Training


def make_optimizer(model: Any, training: Training) -> Any:
    """Return a fresh optimizer over the model's trainable weights; the trainer sets its learning rate at every step."""
    chosen = OPTIMIZERS[training.optimizer]
    optimizer = getattr(optim, chosen.mlx)(learning_rate=0.0, **chosen.mlx_arguments(training.weight_decay))
    optimizer.init(model.trainable_parameters())
    return optimizer
