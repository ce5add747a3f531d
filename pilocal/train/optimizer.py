"""One optimizer step: learning rate, gradient, clipping, update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx.utils import tree_map

from pilocal.base import on_cpu
from pilocal.task import Training
from pilocal.train.batches import Batch
from pilocal.train.below import Below, first_adapted
from pilocal.train.loss import completion_loss


def learning_rate(step: int, total: int, training: Training) -> float:
    """Return the rate of a step (from 0) of the whole run: linear warm-up, then cosine to 0, linear to 0 or constant.

    >>> [round(learning_rate(s, 100, Training(learning_rate=1.0, warmup=0.1)), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warmup = max(1, round(training.warmup * total))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    through = (step - warmup) / max(1, total - warmup)
    if training.lr_schedule == "constant":
        return training.learning_rate
    if training.lr_schedule == "linear":
        return training.learning_rate * (1 - through)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * through))


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


def make_step(model: Any, optimizer: Any, training: Training) -> Callable[[Batch, Below], tuple[mx.array, mx.array]]:
    """Return a function that takes one optimizer step on a batch and returns loss and gradient norm.

    With `accumulate` the batch is computed in that many parts, each weighted by its tokens: the loss and the gradient
    are those of the whole. Where it is compiled, it is so once for each shape that batches have.
    """
    first = first_adapted(model)

    def loss_of(model: Any, *arrays: mx.array) -> tuple[mx.array, mx.array]:
        return completion_loss(model, *arrays, first=first, recompute=training.recompute)

    value_and_grad = nn.value_and_grad(model, loss_of)
    model.train()

    def gradient(share: mx.array, *arrays: mx.array) -> tuple[mx.array, Any]:
        (loss, _), gradients = value_and_grad(model, *arrays)
        return share * loss, tree_map(lambda g: share * g, gradients)

    def update(gradients: Any) -> mx.array:
        gradients, norm = optim.clip_grad_norm(gradients, training.clip)
        optimizer.update(model, gradients)
        return norm

    if not on_cpu() if training.compile is None else training.compile:
        computing, learning = [model.state, mx.random.state], [model.state, optimizer.state]
        gradient = mx.compile(gradient, inputs=computing, outputs=computing)
        update = mx.compile(update, inputs=learning, outputs=learning)

    def step(batch: Batch, below: Below) -> tuple[mx.array, mx.array]:
        loss, gradients = mx.array(0.0), None
        for part in batch.parts(training.accumulate):
            share = mx.array(part.trained_tokens / batch.trained_tokens)
            part_loss, part_gradients = gradient(share, *below.arrays(part))
            loss = loss + part_loss
            gradients = part_gradients if gradients is None else tree_map(mx.add, gradients, part_gradients)
            mx.eval(loss, gradients)  # frees this part's activations before the next
        norm = update(gradients)
        mx.eval(loss, norm, model.trainable_parameters(), optimizer.state)
        return loss, norm

    return step
