"""What a task's training computes in MLX, and one real step of it, for a prediction."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from pilocal.errors import TrainingError
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.loop import NO_LOSS, OTHER_BASE
from pilocal.training.memory import Probe, Sizes, Work, weigh
from pilocal.training.mlx.adapter import add_lora
from pilocal.training.mlx.batches import Batch, Batches
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizers import make_optimizer
from pilocal.training.mlx.step import BatchTrainer
from pilocal.training.mlx.team import MlxTeam


def survey(sizes: Sizes, rows: Sequence[Row], training: Training, number: int, *, share: bool = True) -> Work[Batch]:
    """Look at every batch of a stage's first epoch; `number` is the stage's, `share` as for `batches.Batches`."""
    batches = Batches(rows, training.batch_size, (training.seed, number), share=share)
    own = sum(len(row.tokens) - 1 - batches.prefix for row in rows)
    return weigh(sizes, [batches.at(step) for step in range(batches.per_epoch)], training, own)


def take_probe(model: Any, batch: Batch, lora: Lora, training: Training) -> Probe:
    """Take a step to warm up and one that is timed; `model` is a frozen base and gets an adapter.

    Raises TrainingError when the base's own loss, which is that of the first step, is not a number.
    """
    add_lora(model, lora, training.seed)
    trainer = BatchTrainer(model, make_optimizer(model, training), training, MlxTeam())
    below = Below(model, trainer.first, batch.prefix_P.tolist())
    loss = float(trainer.step(0, training.learning_rate, batch, below)[0])
    if not math.isfinite(loss):
        raise TrainingError("the first step", NO_LOSS, got=loss, fix=OTHER_BASE)
    mx.clear_cache()
    mx.reset_peak_memory()
    before, began = mx.get_active_memory(), time.perf_counter()
    trainer.step(1, training.learning_rate, batch, below)
    return Probe(time.perf_counter() - began, mx.get_peak_memory() - before)
