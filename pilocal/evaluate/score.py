"""Scoring: from what the arms said to what metrics.json says about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.evaluate.answer import Answered
from pilocal.evaluate.arms import BASE_FULL_PROMPT, BASE_FULL_PROMPT_CACHED, BASE_QUERY_ONLY, INTERNALIZED, SHIPPED
from pilocal.evaluate.scoring.bootstrap import interval
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example

Marks = Mapping[str, NDArray[np.float64]]
"""What each test query contributes to the score of an arm, (N, S), by the arm's name."""


def mark(answered: Answered, examples: Sequence[Example], metric: Metric, progress: Progress = silent) -> Marks:
    """Return the marks of every arm; raises what the metric's `marks` raises."""
    return {arm: metric.marks(answered.answers[arm], examples, progress) for arm in answered.costs}


def score(answered: Answered, marks: Marks, metric: Metric) -> dict[str, Any]:
    """Return what metrics.json says about the arms.

    `interval` holds the 95% bounds of a score. `same_answers` is the share of the queries to which the shipped files
    say in llama.cpp exactly what the trained adapter says in MLX.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm, costs in answered.costs.items():
        bounds = list(interval(marks[arm][None], metric.total))
        arms[arm] = {"score": metric.total(marks[arm]), "interval": bounds} | costs
    pairs = zip(answered.answers[SHIPPED.name], answered.answers[INTERNALIZED.name], strict=True)
    same = {"same_answers": mean(float(shipped == trained) for shipped, trained in pairs)}
    return {"n": len(answered.answers[SHIPPED.name]), "arms": arms} | summary(arms) | same


def summary(arms: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return what the arms add up to; a ratio whose denominator is 0 is None.

    `pi_score` is the share of what the full prompt gives the base that the adapter gives without it.
    """
    bare, full, cached = (arms[arm.name] for arm in (BASE_QUERY_ONLY, BASE_FULL_PROMPT, BASE_FULL_PROMPT_CACHED))
    trained, shipped = arms[INTERNALIZED.name], arms[SHIPPED.name]
    gain = full["score"] - bare["score"]
    return {
        "pi_score": (trained["score"] - bare["score"]) / gain if gain else None,
        "prompt_token_reduction": 1 - shipped["prompt_tokens"] / full["prompt_tokens"],
        "speedup": full["latency_ms"] / shipped["latency_ms"],
        "speedup_cached": cached["latency_ms"] / shipped["latency_ms"],
    }


def break_even(cost: float, saved: float) -> int | None:
    """Return how many requests, each of which saves something, pay for a cost; None if they never do.

    >>> break_even(10, 3), break_even(10, -1)
    (4, None)
    """
    return math.ceil(cost / saved) if saved > 0 else None
