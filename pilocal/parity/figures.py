"""How far two traces of one replay lie apart, in figures, and which of them are beyond the tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pilocal.parity.replay import Floats, Replay, Trace

SMALLEST = float(np.finfo(np.float32).tiny)
"""The divisor if the reference is 0."""


def relative(other: Floats, reference: Floats) -> float:
    """Return ||other - reference|| / ||reference||, in float64; 0 if both are 0.

    >>> relative(np.float32([3, 4]), np.float32([3, 3])) == 1 / 18**0.5
    True
    >>> relative(np.float32([0]), np.float32([0]))
    0.0
    """
    wide = reference.astype(np.float64)
    apart = float(np.linalg.norm(other.astype(np.float64) - wide))
    return apart / max(float(np.linalg.norm(wide)), SMALLEST)


def relative_numbers(other: float, reference: float) -> float:
    """Return |other - reference| / |reference|; 0 if both are 0."""
    return abs(other - reference) / max(abs(reference), SMALLEST)


def mean_relative(others: Sequence[float], references: Sequence[float]) -> float:
    """Return the mean of |other - reference| / |reference|: as a percentage, the mean absolute percentage error.

    >>> round(mean_relative([1.1, 2.0], [1.0, 2.0]), 9)
    0.05
    """
    pairs = zip(others, references, strict=True)
    return float(np.mean([relative_numbers(other, reference) for other, reference in pairs]))


def distance(other: Mapping[str, Floats], reference: Mapping[str, Floats]) -> float:
    """Return the relative distance of two sets of weights, each taken as one vector."""
    names = sorted(reference)
    flat = [np.concatenate([weights[name].ravel() for name in names]) for weights in (other, reference)]
    return relative(flat[0], flat[1])


def compare_traces(
    replay: Replay, reference: Trace, other: Trace, names: tuple[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one entry per stage, with its worst figures, and one per step; `names` are those of both traces.

    Steps count from 1 in the whole replay.
    """
    stages: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    for nth, stage in enumerate(replay.stages):
        mine = []
        for step in stage.steps:
            number = len(steps)
            entry: dict[str, Any] = {
                "step": number + 1,
                "stage": stage.number,
                "learning_rate": step.rate,
                "rows": len(step.rows),
            }
            for figure, values in (("loss", (reference.losses, other.losses)),
                                   ("gradient_norm", (reference.norms, other.norms))):  # fmt: skip
                first, second = (kept[number] for kept in values)
                entry[figure] = dict(zip(names, (first, second), strict=True))
                entry[figure]["relative"] = relative_numbers(second, first)
            mine.append(entry)
            steps.append(entry)
        tensors = {
            name: relative(other.gradients[nth][name], value) for name, value in reference.gradients[nth].items()
        }
        worst = max(tensors, key=lambda name: tensors[name])
        stages.append(
            {
                "stage": stage.number,
                "tau": stage.tau,
                "shots": stage.shots,
                "steps": len(mine),
                "first_step": mine[0]["step"],
                "loss": _worst(mine, "loss"),
                "gradient_norm": _worst(mine, "gradient_norm"),
                "gradients": {"relative": tensors[worst], "tensor": worst, "tensors": tensors},
            }
        )
    return stages, steps


def _worst(steps: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any]:
    """Return the largest relative difference among some steps, and the step that has it."""
    worst = max(steps, key=lambda step: step[figure]["relative"])
    return {"relative": worst[figure]["relative"], "step": worst["step"]}


def exceeded(stages: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]], tolerance: float) -> list[str]:
    """Return what is beyond the tolerance: one line per stage's gradients, one for the first step of each figure."""
    found = []
    for figure in ("loss", "gradient_norm"):
        for step in steps:
            if not step[figure]["relative"] <= tolerance:
                where = f"step {step['step']} (stage {step['stage']})"
                found.append(f"{figure.replace('_', ' ')} at {where} differs by {step[figure]['relative']:.2g}")
                break
    for stage in stages:
        gradients = stage["gradients"]
        if not gradients["relative"] <= tolerance:
            where = f"step {stage['first_step']} (stage {stage['stage']})"
            found.append(f"gradient of {gradients['tensor']} at {where} differs by {gradients['relative']:.2g}")
    return found
