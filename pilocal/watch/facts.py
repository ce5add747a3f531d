"""What run.json says to somebody who watches: the task, the steps that are done, and what each training is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN
from pilocal.run_folder.folder import RunDir

TRAIN = "train"
"""The training of every run; others may follow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """One stage of a training, before it begins."""

    number: int
    folder: Path
    """Where its metrics.jsonl is."""
    steps: int | None
    """None in a run of a former version, which does not say it."""
    tokens: float | None
    """About how many tokens a step computes."""
    tau: float | None
    """None for a stage that the schedule does not have."""
    shots: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What run.json says."""

    task: str
    model: str
    backend: str
    done: Mapping[str, float]
    """The steps that are done, with their seconds."""
    trainings: Mapping[str, tuple[StageFacts, ...]]
    """By the names of their steps."""
    ending_early: frozenset[str]
    """The trainings whose stages may end early."""


def read_facts(folder: Path) -> Facts:
    """Read run.json; raises RunError when it is missing, damaged, or none of a run."""
    run = RunDir(folder)
    if not run.file.is_file():
        inside = folder / "run"
        fix = f"`pilocal watch {inside}`" if (inside / "run.json").is_file() else "point at the folder of --run"
        raise RunError(folder, "no run has begun here", fix=fix)
    try:
        return _facts(run)
    except MISSHAPEN as error:
        what = f"damaged run.json: {type(error).__name__}: {error}"
        raise RunError(run.file, what, fix="delete this file; finished steps are redone") from None


def _facts(run: RunDir) -> Facts:
    state = run.state
    plan = state.get("plan", {})
    return Facts(
        task=str(state["task"]["name"]),
        model=str(state.get("model", "")),
        backend=str(state.get("backend", {}).get("name", "")),
        done={str(name): float(step["seconds"]) for name, step in state["steps"].items()},
        trainings=_trainings(run, plan, state.get("schedule", ())),
        ending_early=frozenset(name for name, one in plan.items() if one["may_end_early"]),
    )


def _trainings(
    run: RunDir, plan: Mapping[str, Any], schedule: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[StageFacts, ...]]:
    """Return the stages of each training of the plan; in a run that has none, those of the schedule."""
    known = [(float(stage["tau"]), int(stage["shots"])) for stage in schedule]
    found = {name: tuple(_stage(run, stage, known) for stage in one["stages"]) for name, one in plan.items()}
    scheduled = tuple(
        StageFacts(number=number, folder=run.stage(number), steps=None, tokens=None, tau=tau, shots=shots)
        for number, (tau, shots) in enumerate(known)
        if schedule[number]["share"]
    )
    return {TRAIN: scheduled, **found} if scheduled else found


def _stage(run: RunDir, stage: Mapping[str, Any], schedule: list[tuple[float, int]]) -> StageFacts:
    number, inside = int(stage["number"]), PurePosixPath(stage["folder"])
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{inside} is not in the run folder")
    steps, tokens = int(stage["steps"]), float(stage["tokens"])
    if number < 0 or steps < 1 or not tokens > 0:
        raise ValueError(f"a stage of {steps} steps with {tokens} tokens")
    tau, shots = schedule[number] if number < len(schedule) else (None, None)
    return StageFacts(number=number, folder=run.path / inside, steps=steps, tokens=tokens, tau=tau, shots=shots)
