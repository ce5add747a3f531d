"""The learning rate by its formula, apart from the training's own, so that a fault of the one cannot hide in both."""

from __future__ import annotations

import math

from pilocal.task import Training


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
