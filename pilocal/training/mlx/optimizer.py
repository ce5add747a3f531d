"""The optimizer."""

from __future__ import annotations

from typing import Any

import mlx.optimizers as optim

from pilocal.task import Training


def make_optimizer(model: Any, training: Training) -> Any:
    """Return a fresh optimizer over the model's trainable weights; the loop sets its learning rate at every step."""
    optimizer: Any
    if training.optimizer == "adafactor":
        optimizer = optim.Adafactor(
            learning_rate=0.0, scale_parameter=False, relative_step=False, weight_decay=training.weight_decay
        )
    elif training.optimizer == "adam":
        optimizer = optim.Adam(learning_rate=0.0, bias_correction=True)
    else:
        optimizer = optim.AdamW(learning_rate=0.0, weight_decay=training.weight_decay, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    return optimizer
