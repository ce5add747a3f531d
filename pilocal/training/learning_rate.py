"""The learning rate of every step."""

from __future__ import annotations

import math

from pilocal.task import Training


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
