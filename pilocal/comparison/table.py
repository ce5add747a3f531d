"""What compare.json says: scores with their intervals, what they cost, and when the cost has paid for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.comparison.arms import ComparedArm
from pilocal.comparison.comparison import Comparison
from pilocal.comparison.results import Result
from pilocal.comparison.slices import TEMPLATE_ONLY, slices
from pilocal.evaluate.arms import BASE_FULL_PROMPT, BASE_FULL_PROMPT_CACHED, BASE_QUERY_ONLY
from pilocal.evaluate.score import break_even
from pilocal.evaluate.scoring.bootstrap import interval
from pilocal.flow.residues import Template
from pilocal.flow.saving import Prices

Total = Callable[[NDArray[np.float64]], float]


def make_table(comparison: Comparison, results: Sequence[Result], prices: Prices | None) -> dict[str, Any]:
    """Return the content of compare.json; every score has its bootstrap 95% interval over queries and seeds."""
    design, task, total = comparison.design, comparison.task, comparison.metric.total
    cut = slices(task)
    rows = []
    for arm in design.arms:
        own = [each for each in results if each.arm == arm.name and each.examples is None and each.rate is None]
        if own:
            rows.append({"arm": arm.name, "title": arm.title} | _row(own, cut, total))
    _add_ratios(rows, prices)
    return {
        "task": task.name,
        "model": task.model,
        "metric": task.metric,
        "n": len(task.test),
        "seeds": list(design.seeds),
        "law": {name: value for name, value in asdict(design.decay_schedule).items() if name != "decay"},
        "steps": task.training.steps,
        "backend": comparison.backend.name,
        "prices": asdict(prices) if prices else None,
        "slices": {name: len(numbers) for name, numbers in cut.items()},
        "arms": rows,
        "curve": _curve(results, design.curve, total),
        "strengths": _strengths(design.arms, rows),
        "residue": [{"arm": design.residue_arm} | _residue(each, results, total) for each in comparison.residues],
    }


def _row(own: Sequence[Result], cut: Mapping[str, Sequence[int]], total: Total) -> dict[str, Any]:
    """Return an arm's entry from its results, one per seed; `cut` holds the queries of each slice."""
    row = _score(own, total)
    row["prompt_tokens"] = mean(result.prompt_tokens for result in own)
    row |= own[0].times
    if own[0].training:
        figures = ("tokens", "computed_tokens", "seconds")
        row["training"] = {name: mean(result.training[name] for result in own) for name in figures}
        row["training"]["ends"] = [result.training["ends"] for result in own]
    if cut[TEMPLATE_ONLY]:
        row["slices"] = {name: _score(own, total, numbers) for name, numbers in cut.items() if numbers}
    return row


def _curve(results: Sequence[Result], counts: Sequence[int], total: Total) -> list[dict[str, Any]]:
    """Return the learning curve's points, by number of examples and arm."""
    points = []
    for count in counts:
        for arm in dict.fromkeys(result.arm for result in results):
            some = [result for result in results if (result.arm, result.examples) == (arm, count)]
            if some:
                points.append({"arm": arm, "examples": count} | _score(some, total))
    return points


def _strengths(arms: Sequence[ComparedArm], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of every schedule whose adapter is asked at several strengths, the weakest first."""
    scored = {row["arm"]: {name: row[name] for name in ("score", "interval")} for row in rows}
    points = [
        {"schedule": arm.schedule, "strength": arm.strength} | scored[arm.name]
        for arm in arms
        if arm.is_on_curve and arm.name in scored
    ]
    several = {
        one["schedule"]
        for one in points
        if any(one["schedule"] == two["schedule"] and one["strength"] != two["strength"] for two in points)
    }
    return sorted(
        (point for point in points if point["schedule"] in several),
        key=lambda point: (point["schedule"], point["strength"]),
    )


def _residue(template: Template, results: Sequence[Result], total: Total) -> dict[str, Any]:
    """Return what an adapter scores with one part of the template, from one result for each seed."""
    asked = [result for result in results if result.rate == template.tau]
    tokens = {"template_tokens": template.tokens, "prompt_tokens": mean(result.prompt_tokens for result in asked)}
    return {"rate": template.tau} | tokens | _score(asked, total)


def _score(results: Sequence[Result], total: Total, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the mean score of several seeds, over all queries or some."""
    marks_RNS = np.stack([result.marks_NS if numbers is None else result.marks_NS[numbers] for result in results])
    by_seed = [total(marks_NS) for marks_NS in marks_RNS]
    low, high = interval(marks_RNS, total)
    return {"score": mean(by_seed), "interval": [low, high], "by_seed": by_seed}


def _add_ratios(rows: Sequence[dict[str, Any]], prices: Prices | None) -> None:
    """Add what follows from a comparison with the references: the PI score and the break-even."""
    by_name: Mapping[str, dict[str, Any]] = {row["arm"]: row for row in rows}
    base = (BASE_QUERY_ONLY, BASE_FULL_PROMPT, BASE_FULL_PROMPT_CACHED)
    bare, full, cached = (by_name.get(arm.compare) for arm in base)
    if bare is None or full is None:
        return
    gain = full["score"] - bare["score"]
    for row in rows:
        row["pi_score"] = (row["score"] - bare["score"]) / gain if gain else None
        if "training" not in row:
            continue
        seconds = row["training"]["seconds"]
        row["break_even"] = {
            "requests": break_even(seconds, (full["latency_ms"] - row["latency_ms"]) / 1000),
            "requests_cached": break_even(seconds, (cached["latency_ms"] - row["latency_ms"]) / 1000)
            if cached
            else None,
        }
        if prices:
            cost = row["training"]["tokens"] * prices.training
            saved = (full["prompt_tokens"] - row["prompt_tokens"]) * prices.prompt
            row["break_even"]["requests_money"] = break_even(cost, saved)
