"""Schedules: how the prompt shrinks, stage by stage, and how the optimizer steps are shared out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pilocal.errors import Faults, InputError, PilocalError, raise_all
from pilocal.settings import build, line_of, read_toml, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a schedule."""

    tau: float
    """Share of the template's tokens that is kept: 1 whole, 0 gone."""
    shots: int
    """Solved examples placed before the query."""
    share: float
    """Share of the run's optimizer steps."""

    def __post_init__(self) -> None:
        require(
            (0 <= self.tau <= 1, "tau", "must be between 0 and 1"),
            (self.shots >= 0, "shots", "must not be negative"),
            (0 < self.share <= 1, "share", "must be above 0 and at most 1"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decay:
    """A schedule given by a law instead of stage by stage."""

    decay: str
    stages: int = 4
    shots: int = 5

    def __post_init__(self) -> None:
        require(
            (self.decay == "linear", "decay", 'must be "linear"; other schedules are written out in [[stage]] tables'),
            (self.stages >= 2, "stages", "must be at least 2: the whole prompt and the bare query"),
            (self.shots >= 0, "shots", "must not be negative"),
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """The stages in order; the last one is the query alone and no prompt ever grows back."""

    stages: tuple[Stage, ...]

    def steps(self, total: int) -> tuple[int, ...]:
        """Share `total` optimizer steps out by the stages' shares, at least one each, exactly `total` together.

        >>> linear(stages=4, shots=5).steps(10)
        (3, 3, 2, 2)
        """
        exact = [stage.share * total for stage in self.stages]
        steps = [max(1, int(share + 1e-9)) for share in exact]
        by_remainder = sorted(range(len(steps)), key=lambda i: steps[i] - exact[i])
        for i in by_remainder * total:
            if sum(steps) == total:
                break
            if sum(steps) < total:
                steps[i] += 1
            elif steps[-1 - i] > 1:
                steps[-1 - i] -= 1
        return tuple(steps)


def linear(*, stages: int, shots: int) -> Schedule:
    """Return PromptIntern's linear decay: tau 1 -> 0 and shots k -> 0 in equal steps (EMNLP Findings 2024).

    >>> [(round(s.tau, 2), s.shots) for s in linear(stages=4, shots=5).stages]
    [(1.0, 5), (0.67, 3), (0.33, 2), (0.0, 0)]
    """
    left = [1 - i / (stages - 1) for i in range(stages)]
    return Schedule(tuple(Stage(tau=tau, shots=round(shots * tau), share=1 / stages) for tau in left))


DEFAULT = linear(stages=4, shots=5)
"""What a run without --schedule follows; the same as schedules/linear.toml."""


def load_schedule(path: Path) -> Schedule:
    """Read a schedule file: a law (`decay = ...`) or `[[stage]]` tables.

    Raises InputError or Faults, with lines, when it is malformed or breaks a law of schedules.
    """
    values, text = read_toml(path)
    faults: list[PilocalError] = []
    if "stage" not in values:
        law = build(_Decay, values, faults, path, text)
        raise_all(faults)
        assert law is not None
        return linear(stages=law.stages, shots=law.shots)
    tables: Any = values.pop("stage")
    if values:
        key = next(iter(values))
        where = f"{path}:{line_of(text, key)}"
        raise InputError(where, f"{key} beside [[stage]] tables", fix="write either a law or the stages")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(
            f"{path}:{line_of(text, 'stage')}", "stage must be [[stage]] tables", fix="use double brackets"
        )
    stages = [build(Stage, table, faults, path, text, "stage", nth) for nth, table in enumerate(tables)]
    raise_all(faults)
    schedule = Schedule(tuple(stage for stage in stages if stage is not None))
    _check_laws(schedule, path, text)
    return schedule


def _check_laws(schedule: Schedule, path: Path, text: str) -> None:
    faults: list[PilocalError] = []

    def fault(key: str, nth: int, problem: str, got: object, fix: str) -> None:
        faults.append(InputError(f"{path}:{line_of(text, key, 'stage', nth)}", problem, got=got, fix=fix))

    stages = schedule.stages
    for i, (before, after) in enumerate(pairwise(stages), 1):
        if after.tau > before.tau:
            fault("tau", i, f"stage {i}: the template grows back from tau {before.tau}", after.tau, "lower it")
        if after.shots > before.shots:
            fault("shots", i, f"stage {i}: the shots grow back from {before.shots}", after.shots, "lower it")
    last = len(stages) - 1
    if stages[-1].tau:
        fault("tau", last, "the last stage must be the query alone", stages[-1].tau, "set tau = 0")
    if stages[-1].shots:
        fault("shots", last, "the last stage must be the query alone", stages[-1].shots, "set shots = 0")
    total = sum(stage.share for stage in stages)
    if abs(total - 1) > 1e-3:
        fault("share", 0, "the shares must add up to 1", round(total, 4), "correct them")
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
