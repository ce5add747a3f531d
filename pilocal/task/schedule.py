"""Schedules: how the prompt shrinks stage by stage, and how the optimizer steps are divided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pilocal.errors import InputError, PilocalError, nearest, raise_all
from pilocal.task.faults import merged
from pilocal.task.text import absent, holds, meant, path_of
from pilocal.task.toml import build, line_of, one_of, read_toml, require
from pilocal.task.within import Within, within

MOST_STAGES, MOST_SHOTS = 100, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a schedule."""

    tau: Annotated[float, Within(0, 1)]
    """Share of the template's tokens that is kept: 1 whole, 0 gone."""
    shots: Annotated[int, Within(0, MOST_SHOTS)]
    """Solved examples placed before the query."""
    share: Annotated[float, Within(0, 1)]
    """Share of the run's optimizer steps; 0 for a stage that is evaluated but not trained."""
    working: Annotated[float, Within(0, 1)] = 0.0
    """Share of the working that stands before an answer: 1 whole, 0 the answer alone."""

    def __post_init__(self) -> None:
        require(*within(self))

    def facts(self) -> dict[str, float]:
        """Return what a run records of it: the share of the working only where there is one."""
        working = {"working": self.working} if self.working else {}
        return {"tau": self.tau, "shots": self.shots, "share": self.share, **working}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """When a stage may end early; its unused steps go to the stages after it."""

    margin: float
    """The most that the validation loss, in nats per token, may rise when the prompt is cut to the next stage's."""
    least: float
    """Share of a stage's steps before the first comparison, and between two."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The stages in order: the first has the full prompt, the last what every request has, and no prompt grows back.

    By default nothing is left in the last stage but the query. Completions are the same in every stage, unless the
    schedule fades the working before them.
    """

    stages: tuple[Stage, ...]
    """Each with tau, shots and share."""
    adaptive: Adaptive | None = None
    """None if every stage takes exactly its share."""

    def steps(self, total: int) -> tuple[int, ...]:
        """Divide `total` optimizer steps by the stages' shares; a share above 0 gets at least one step.

        >>> DecaySchedule(decay="linear").schedule().steps(10)
        (3, 3, 2, 2)
        """
        exact = [stage.share * total for stage in self.stages]
        steps = [max(1, int(share + 1e-9)) if share else 0 for share in exact]
        by_remainder = sorted((i for i in range(len(steps)) if exact[i]), key=lambda i: steps[i] - exact[i])
        for turn in range(len(by_remainder) * total):
            if sum(steps) == total:
                break
            if sum(steps) < total:
                steps[by_remainder[turn % len(by_remainder)]] += 1
            elif steps[i := by_remainder[-1 - turn % len(by_remainder)]] > 1:
                steps[i] -= 1
        return tuple(steps)

    @property
    def trained(self) -> tuple[int, ...]:
        """The numbers of the stages that get optimizer steps."""
        return tuple(number for number, stage in enumerate(self.stages) if stage.share)

    @property
    def workings(self) -> tuple[float, ...]:
        """The shares of the working that completions have, the largest first; (0.0,) where none fades."""
        return tuple(sorted({stage.working for stage in self.stages}, reverse=True))


def exponential(progress: float, rate: float) -> float:
    """Return the share that is left at `progress` (0 to 1): it falls from 1 to 0, fast early and slowly late.

    >>> [round(exponential(i / 3, 3), 2) for i in range(4)]
    [1.0, 0.33, 0.09, 0.0]
    """
    last = math.exp(-rate)
    return (math.exp(-rate * progress) - last) / (1 - last)


def inverse_exponential(progress: float, rate: float) -> float:
    """Return the share that is left at `progress` (0 to 1): it falls from 1 to 0, slowly early and fast late.

    >>> [round(inverse_exponential(i / 3, 3), 2) for i in range(4)]
    [1.0, 0.91, 0.67, 0.0]
    """
    return 1 - exponential(1 - progress, rate)


PROMPT, WORKING, BOTH = FADES = ("prompt", "working", "both")
"""What a schedule shortens stage by stage."""

UNTIL = frozenset({"until_tau", "until_shots"})
FALLS = UNTIL | {"stages", "final", "fade"}

DECAYS: Mapping[str, tuple[str, frozenset[str]]] = {
    "linear": ("tau and shots fall in equal steps", FALLS),
    "exponential": ("they fall fast early, slowly late", FALLS | {"rate"}),
    "inverse-exponential": ("they fall slowly early, fast late", FALLS | {"rate"}),
    "template-only": (
        "no shots; the template falls in equal steps",
        frozenset({"stages", "final", "until_tau"}),
    ),
    "shots-only": ("no template; the shots fall in equal steps", frozenset({"stages", "final", "until_shots"})),
    "drop": ("the full prompt throughout, then nothing", UNTIL),
    "direct": ("the query alone from the first step", UNTIL),
    "adaptive": ("linear, but a stage ends once the next prompt is as good", FALLS | {"margin", "least"}),
}
"""Every decay: what it does, and which keys it reads besides `shots`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecaySchedule:
    """A schedule given by its decay, not stage by stage; the first three are PromptIntern's (EMNLP Findings 2024)."""

    decay: str
    """What falls, and how; see the table of decays."""
    stages: Annotated[int, Within(2, MOST_STAGES, otherwise="; 2 are the whole prompt and the bare query")] = 4
    """How many stages are trained."""
    shots: Annotated[int, Within(0, MOST_SHOTS)] = 5
    """Solved examples in the full prompt."""
    rate: Annotated[float, Within(0.001, 100)] = 3.0
    """How fast the exponential decays fall; near 0 they are nearly linear."""
    final: Annotated[float | None, Within(0, 1, above=True, below=True)] = None
    """The last stage's share of the steps; the others divide the rest equally. By default all stages take the same.
    A step is cheapest in the last stage."""
    margin: Annotated[float, Within(0, 100)] = 0.05
    """For adaptive: a stage may end once the next, shorter prompt costs less than this, in nats per token, on the
    validation set."""
    least: Annotated[float, Within(0, 1, above=True)] = 0.25
    """For adaptive: share of a stage's steps before the first comparison, and between two."""
    until_tau: Annotated[float, Within(0, 1, below=True)] = 0.0
    """Where tau ends: the share of the template's tokens that stays in every request for good."""
    until_shots: Annotated[int, Within(0, MOST_SHOTS)] = 0
    """Where the shots end: so many stay before every query for good."""
    fade: str = "prompt"
    """What is shortened: "prompt" (template and shots), "working" (what the records' `working` puts before an answer;
    the prompt is then that of the last stage from the first step), or "both", at one rate. It ends at the answer
    alone."""

    def __post_init__(self) -> None:
        require(
            one_of(self.decay, "decay", DECAYS, ", or [[stage]] tables instead"),
            *within(self),
            (self.decay != "shots-only" or self.shots > 0, "shots", "must be at least 1 for shots-only"),
            (self.until_shots <= max(self.shots, 0), "until_shots", f"must not be above shots, which is {self.shots}"),
            one_of(self.fade, "fade", FADES),
        )

    def schedule(self) -> Schedule:
        """Return the stages.

        >>> [(round(s.tau, 2), s.shots) for s in DecaySchedule(decay="linear").schedule().stages]
        [(1.0, 5), (0.67, 3), (0.33, 2), (0.0, 0)]
        >>> [(s.tau, s.shots, s.share) for s in DecaySchedule(decay="drop").schedule().stages]
        [(1.0, 5, 1.0), (0.0, 0, 0.0)]
        """
        if self.decay in ("drop", "direct"):
            share = float(self.decay == "drop")
            return Schedule((self._stage(1.0, share), self._stage(0.0, 1 - share)))
        left = [self._left(i / (self.stages - 1)) for i in range(self.stages)]
        final = 1 / self.stages if self.final is None else self.final
        shares = [(1 - final) / (self.stages - 1)] * (self.stages - 1) + [final]
        parts = [self._fading(part, share) for part, share in zip(left, shares, strict=True)]
        if self._fades == WORKING or self.decay in ("template-only", "shots-only"):
            parts.insert(0, replace(self._stage(1.0, 0.0), working=parts[0].working))  # what the base is asked with
        adaptive = Adaptive(margin=self.margin, least=self.least) if self.decay == "adaptive" else None
        return Schedule(tuple(parts), adaptive)

    def _fading(self, left: float, share: float) -> Stage:
        """Return a stage of a decay that falls, with a part of all that it shortens."""
        stage = self._stage(0.0 if self._fades == WORKING else left, share)
        if self.decay == "template-only":
            return replace(stage, shots=0)
        if self.decay == "shots-only":
            return replace(stage, tau=0.0)
        return stage if self._fades == PROMPT else replace(stage, working=left)

    @property
    def _fades(self) -> str:
        return self.fade if "fade" in DECAYS[self.decay][1] else PROMPT

    def _stage(self, left: float, share: float) -> Stage:
        """Return a stage with a part of what does not stay, from 1 (the whole prompt) to 0."""
        tau = self.until_tau + (1 - self.until_tau) * left
        return Stage(tau=tau, shots=self.until_shots + round((self.shots - self.until_shots) * left), share=share)

    def _left(self, progress: float) -> float:
        curves = {"exponential": exponential, "inverse-exponential": inverse_exponential}
        if self.decay in curves and progress < 1:
            return curves[self.decay](progress, self.rate)
        return 1 - progress


DEFAULT = DecaySchedule(decay="linear").schedule()
"""The schedule of a run without --schedule; the same as schedules/linear.toml."""


def load_decay(path: Path) -> DecaySchedule:
    """Read a schedule file that names a decay; raises InputError or Faults, also for [[stage]] tables."""
    values, text = read_toml(path)
    if "stage" in values:
        fix = f'name a decay, such as decay = "linear" (one of {", ".join(DECAYS)})'
        raise InputError(
            f"{path}:{line_of(text, 'stage')}", "this must name a decay, not list [[stage]] tables", fix=fix
        )
    return _decay(values, text, path)


def _decay(values: dict[str, Any], text: str, path: Path) -> DecaySchedule:
    faults: list[PilocalError] = []
    decay = build(DecaySchedule, values, faults, path, text)
    if decay:
        read = DECAYS[decay.decay][1] | {"decay", "shots"}
        for key in sorted(values.keys() - read):
            what, fix = f"{decay.decay} does not read {key}", "leave it out"
            faults.append(InputError(f"{path}:{line_of(text, key)}", what, got=values[key], fix=fix))
    raise_all(faults)
    assert decay is not None
    return decay


def load_schedule(path: str | Path) -> Schedule:
    """Read a schedule file: `decay = ...` or `[[stage]]` tables.

    Beside `[[stage]]` tables, `until_tau` and `until_shots` say what stays of the prompt. Raises InputError or Faults,
    with lines, when it is malformed, when a prompt or a working grows back, or when the last stage has more than stays.
    """
    path = path_of(path)
    _check_file(path)
    values, text = read_toml(path)
    if "stage" not in values:
        return _decay(values, text, path).schedule()
    faults: list[PilocalError] = []
    tables: Any = values.pop("stage")
    until = {key: values.pop(key) for key in sorted(UNTIL & values.keys())}
    if values:
        raise _beside_stages(path, text, next(iter(values)))
    _check_tables(tables, f"{path}:{line_of(text, 'stage')}")
    stages = [build(Stage, table, faults, path, text, "stage", nth) for nth, table in enumerate(tables)]
    raise_all(merged(faults))
    schedule = Schedule(tuple(stage for stage in stages if stage is not None))
    whole = {"decay": "drop", "shots": max(stage.shots for stage in schedule.stages)}
    stays = build(DecaySchedule, whole | until, faults, path, text)
    raise_all(merged(faults))
    assert stays is not None
    _check_laws(schedule, stays, path, text)
    return schedule


def _check_tables(tables: Any, where: str) -> None:
    """Raise InputError for anything but [[stage]] tables, and for too many."""
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InputError(where, "stage must be [[stage]] tables", fix="use double brackets")
    if len(tables) > MOST_STAGES:
        fix = f"write at most {MOST_STAGES}"
        raise InputError(where, "too many [[stage]] tables", got=len(tables), fix=fix)


def _check_file(path: Path) -> None:
    """Raise InputError for the name of a decay in the place of a file."""
    near = None if holds(path.exists) or meant(path) else nearest(path.stem, DECAYS)
    if near:
        fix = f'write a file with decay = "{near}"'
        raise InputError(path, absent(path, "no such schedule file"), fix=fix)


def _beside_stages(path: Path, text: str, key: str) -> InputError:
    """Return what is wrong with a key beside [[stage]] tables."""
    near = nearest(key, UNTIL)
    fix = f"did you mean {near}?" if near else "write either a decay or the stages"
    return InputError(f"{path}:{line_of(text, key)}", f"{key} beside [[stage]] tables", fix=fix)


def _check_laws(schedule: Schedule, stays: DecaySchedule, path: Path, text: str) -> None:
    """Raise InputError or Faults for each law that a schedule breaks; `stays` says what it may end with."""
    faults: list[PilocalError] = []

    def fault(key: str, nth: int, problem: str, got: object, fix: str) -> None:
        faults.append(InputError(f"{path}:{line_of(text, key, 'stage', nth)}", problem, got=got, fix=fix))

    stages = schedule.stages
    for i, (before, after) in enumerate(pairwise(stages), 1):
        if after.tau > before.tau:
            fault("tau", i, f"stage {i}: the template grows back from tau {before.tau}", after.tau, "lower it")
        if after.shots > before.shots:
            fault("shots", i, f"stage {i}: the shots grow back from {before.shots}", after.shots, "lower it")
        if after.working > before.working:
            fault("working", i, f"stage {i}: the working grows back from {before.working}", after.working, "lower it")
    _check_end(stages[-1], stays, lambda key, *said: fault(key, len(stages) - 1, *said))
    total = sum(stage.share for stage in stages)
    if abs(total - 1) > 1e-3:
        fault("share", 0, "the shares must add up to 1", round(total, 4), "correct them")
    raise_all(merged(faults))


def _check_end(last: Stage, stays: DecaySchedule, fault: Callable[[str, str, object, str], None]) -> None:
    """Call `fault` with a key, what is wrong, what was got and what to do where the last stage has too much."""
    for key, end in (("tau", stays.until_tau), ("shots", stays.until_shots)):
        if (got := getattr(last, key)) != end:
            what = f"the last stage must {f'end where until_{key} says' if end else 'be the query alone'}"
            stays_too = f", or until_{key} = {got:g} above all stages to let it stay"
            also = "" if end or (key, got) == ("tau", 1) else stays_too
            fault(key, what, got, f"set {key} = {end:g}{also}")
    if last.working:
        fault("working", "the last stage must have the answer alone", last.working, "set working = 0")
