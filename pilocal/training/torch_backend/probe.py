"""How long a training will take in PyTorch: one real step is timed, and every other is told from it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import mean

from pilocal.errors import TrainingError
from pilocal.prompt.tokens import Row
from pilocal.training.loop import NO_LOSS, OTHER_BASE
from pilocal.training.memory import Sizes, operations
from pilocal.training.row_order import StagePlan
from pilocal.training.torch_backend.trainer import TorchTrainer


def stage_seconds(trainer: TorchTrainer, sizes: Sizes, plans: Sequence[StagePlan]) -> list[float]:
    """Return the seconds that each stage takes, told from its first stage's largest step.

    The smallest step of all warms up. Raises TrainingError when its loss, the base's own, is not a number.
    """
    training = trainer.training

    def cost(rows: Sequence[Row]) -> float:
        return sum(operations(sizes, load, recompute=training.recompute) for load in trainer.loads(rows))

    orders = [plan.order(training, share=trainer.shares_prefix) for plan in plans]
    stages = [[order.rows_at(step) for step in range(order.per_epoch)] for order in orders]
    costs = [[cost(rows) for rows in steps] for steps in stages]
    small, large = min(stages[-1], key=cost), max(stages[0], key=cost)
    loss, _ = trainer.step(0, training.learning_rate, small)
    if not math.isfinite(loss):
        raise TrainingError("the first step", NO_LOSS, got=loss, fix=OTHER_BASE)
    began = time.perf_counter()
    trainer.step(1, training.learning_rate, large)
    per_operation = (time.perf_counter() - began) / cost(large)
    return [plan.steps * per_operation * mean(found) for plan, found in zip(plans, costs, strict=True)]
