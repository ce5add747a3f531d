"""The runs below a folder: what each has come to, and how much room it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, RunError
from pilocal.evaluate.arms import BASE_FULL_PROMPT, INTERNALIZED, SHIPPED
from pilocal.flow.steps import EVALUATE, STEPS
from pilocal.run_folder.files import MISSHAPEN, read_json
from pilocal.run_folder.folder import RunDir
from pilocal.task.text import absent, meant, path_of

DAMAGED = "damaged"
"""What stands in the place of the last step where run.json cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """One run, in a line."""

    folder: Path
    task: str
    """The task's name; empty where run.json does not say it."""
    done: str
    """The step that was finished last; "nothing", or "damaged"."""
    finished: str | None
    """When that was, as ISO 8601 in UTC."""
    metric: str | None = None
    """None where nothing was evaluated, or another step was done since."""
    score: float | None = None
    """Of the shipped file, or of the adapter where none is served, asked without the prompt."""
    prompted: float | None = None
    """Of the base with the whole prompt."""
    bytes: int = 0
    """What its files take on the disk; a file with several names counts once."""


def find_runs(folder: str | Path) -> list[Path]:
    """Return the run folders at or below a folder, by name; hidden folders and links are not entered.

    Raises InputError where there is no such folder.
    """
    folder = path_of(folder)
    if not folder.is_dir():
        near = meant(folder)
        what = "this must be a folder" if folder.exists() else absent(folder, "no such folder")
        raise InputError(folder, what, fix=f"did you mean {near}?" if near else "name one that holds runs")
    return sorted(_below(folder))


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if "run.json" in files and _is_run(Path(place)):
            folders.clear()
            yield Path(place)
        folders[:] = [name for name in folders if not name.startswith(".")]


def _is_run(folder: Path) -> bool:
    """Tell a run from another program's run.json; a damaged one is a run where its other files are there."""
    try:
        return "task" in RunDir(folder).state
    except RunError:
        return (folder / ".lock").is_file() or (folder / "stages").is_dir()


def list_runs(folder: str | Path) -> list[RunLine]:
    """Return a line for every run at or below a folder; raises as `find_runs`."""
    return [_line(run) for run in find_runs(folder)]


def _line(folder: Path) -> RunLine:
    size = disk_bytes(folder)
    try:
        run = RunDir(folder)
        steps, task = run.state["steps"], str(run.state["task"]["name"])
        ends = [(str(steps[step.name]["finished"]), step.name) for step in STEPS if step.name in steps]
    except (RunError, *MISSHAPEN):
        return RunLine(folder=folder, task="", done=DAMAGED, finished=None, bytes=size)
    last = max((finished for finished, _ in ends), default=None)
    done = next((name for finished, name in reversed(ends) if finished == last), "nothing")
    scores = _scores(run) if done == EVALUATE.name else {}
    return RunLine(folder=folder, task=task, done=done, finished=last, bytes=size, **scores)


def _scores(run: RunDir) -> dict[str, Any]:
    """Return what metrics.json says; nothing where it is not there or damaged."""
    try:
        found = read_json(run.metrics)
        arms = found["arms"]
        own = next(arms[arm.name] for arm in (SHIPPED, INTERNALIZED) if arm.name in arms)
        prompted = arms.get(BASE_FULL_PROMPT.name, {}).get("score")
        return {"metric": str(found["metric"]), "score": float(own["score"]), "prompted": prompted}
    except (*MISSHAPEN, StopIteration):
        return {}


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; one with several names counts once, a link not at all."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                state = (Path(place) / name).lstat()
            except OSError:  # gone meanwhile
                continue
            seen[state.st_dev, state.st_ino] = state.st_size
    return sum(seen.values())
