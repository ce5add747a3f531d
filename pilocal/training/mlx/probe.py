"""What a task's training computes in MLX, and one real step of it, for a prediction."""

from __future__ import annotations

import math
import time
from typing import Any

import mlx.core as mx

from pilocal.errors import TrainingError
from pilocal.task import Lora, Training
from pilocal.training.loop import NO_LOSS, OTHER_BASE
from pilocal.training.memory import Probe, Sizes, Work, weigh
from pilocal.training.mlx.adapter import add_lora
from pilocal.training.mlx.batches import Batch, make_batch
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizers import make_optimizer
from pilocal.training.mlx.step import BatchTrainer
from pilocal.training.mlx.team import MlxTeam
from pilocal.training.row_order import StagePlan

LONG = 10.0
"""Seconds beside which what warms up counts for little."""


def survey(sizes: Sizes, plan: StagePlan, training: Training, *, share: bool = True) -> Work[Batch]:
    """Look at every batch of a stage's first epoch; `share` is as for `batches.Batches`."""
    order = plan.order(training, share=share)
    beside = (row for stream in plan.beside for row in stream.rows)
    own = sum(len(row.tokens) - 1 - order.prefix for row in (*plan.train, *plan.generation, *beside))
    steps = [make_batch(order.rows_at(step), order.prefix, share=share) for step in range(order.per_epoch)]
    return weigh(sizes, steps, training, own)


def take_probe(model: Any, batch: Batch, lora: Lora, training: Training) -> Probe:
    """Take a step to warm up and one that is timed; `model` is a frozen base and gets an adapter.

    A step of more than LONG seconds is not taken twice. Raises TrainingError when the base's own loss, which is that of
    the first step, is not a number.
    """
    add_lora(model, lora, training.seed)
    trainer = BatchTrainer(model, make_optimizer(model, training), training, MlxTeam())
    below = Below(model, trainer.first, batch.prefix_P.tolist())

    def step(number: int) -> tuple[float, Probe]:
        mx.clear_cache()
        mx.reset_peak_memory()
        began = time.perf_counter()
        loss = float(trainer.step(number, training.learning_rate, batch, below)[0])
        seconds = time.perf_counter() - began
        return loss, Probe(seconds, mx.get_peak_memory() - mx.get_active_memory())

    loss, first = step(0)
    if not math.isfinite(loss):
        raise TrainingError("the first step", NO_LOSS, got=loss, fix=OTHER_BASE)
    return first if first.seconds > LONG else step(1)[1]
