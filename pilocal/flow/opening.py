"""Opening a run folder for writing: for a task and a schedule, or again with those it was made from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilocal.base.base import Base, find_base
from pilocal.base.chat import ChatSettings
from pilocal.errors import RunError
from pilocal.flow.checks import checked_context
from pilocal.flow.context import Context
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.start import Start
from pilocal.run_folder.files import MISSHAPEN
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.typed import made
from pilocal.task import load_task
from pilocal.task.load import task_folder
from pilocal.task.schedule import DEFAULT, Adaptive, Schedule, Stage, load_schedule
from pilocal.training.backend import Backend


def default_run(task: Path, start: Start | None = None) -> Path:
    """Return a task's default run folder; that of a run which goes on from another has the other's name in its own."""
    return task_folder(task) / (f"{start.folder.resolve().name}-edited" if start else "run")


@contextmanager
def open_task(
    task_folder: Path,
    schedule_path: Path | None,
    run_folder: Path | None,
    listeners: Listeners = QUIET,
    backend: Backend | None = None,
    *,
    to_export: bool = False,
    start: Start | None = None,
    weights: bool = True,
) -> Iterator[Context]:
    """Read a task and a schedule and open the run folder; `backend` and what follows are as for `checked_context`.

    Without a schedule, the task's own is used, else the default; without a run folder, a temporary one that is deleted
    afterwards. Raises what `load_task`, `load_schedule`, `RunDir.locked` and `checked_context` raise.
    """
    task = load_task(task_folder)
    path = schedule_path or task.files.get("schedule")
    schedule = load_schedule(path) if path else DEFAULT
    if (begins := schedule.stages[0].tau) < 1:
        fix = "put a [[stage]] with tau = 1 and share = 0 first to compare with the whole template"
        listeners.warn(f"{path}: it begins at tau {begins:g}, which is all that a full prompt has of it; {fix}")
    temporary = Path(tempfile.mkdtemp(prefix="pilocal-")) if run_folder is None else None
    try:
        with RunDir.locked(run_folder or temporary or Path(), task=task.name, files=task.files) as run:
            options: dict[str, Any] = {"to_export": to_export, "start": start, "weights": weights}
            yield checked_context(task, schedule, run, listeners, backend, **options)
    finally:
        if temporary:
            shutil.rmtree(temporary)


@contextmanager
def open_run(run_folder: Path, listeners: Listeners = QUIET) -> Iterator[Context]:
    """Open a run again, with the task and the schedule that it was made from; raises RunError when it has none."""
    state = RunDir(run_folder).state
    try:
        stages = tuple(made(Stage, stage) for stage in state["schedule"])
        adaptive = made(Adaptive, state["adaptive"]) if state["adaptive"] else None
    except MISSHAPEN:
        raise _nothing_begun(run_folder) from None
    task = load_task(task_file_of(run_folder))
    with RunDir.locked(run_folder, task=task.name, files=task.files) as run:
        yield checked_context(task, Schedule(stages, adaptive), run, listeners)


def task_file_of(run_folder: Path) -> Path:
    """Return the task.toml that a run was made from; raises RunError when no run has begun there, or it is gone."""
    file = _task_file(run_folder)
    if not file.is_file():
        fix = f"`pilocal run TASK --run {run_folder}` with the folder where it is now"
        raise RunError(run_folder, "the task of this run is not there any more", got=str(file), fix=fix)
    return file


def base_of(run_folder: Path) -> Base:
    """Return the base that a run was made with; raises RunError or ModelError when it is not to be had."""
    state, folder = RunDir(run_folder).state, _task_file(run_folder).parent
    try:
        model, known = state["model"], state["base_sha256"]
        chat = made(ChatSettings, state.get("chat", {}))
    except MISSHAPEN:
        raise _nothing_begun(run_folder) from None
    base = find_base(model, folder, chat)
    if base.sha256 != known:
        fix = "bring back the base that the run was made with, or run again"
        raise RunError(run_folder, "the base is not the one that the run was made with", got=str(base.path), fix=fix)
    return base


def _task_file(run_folder: Path) -> Path:
    try:
        return RunDir(run_folder).find_task()
    except MISSHAPEN:
        raise _nothing_begun(run_folder) from None


def _nothing_begun(run_folder: Path) -> RunError:
    return RunError(run_folder, "no run has begun here", fix="point at the run folder of `pilocal run TASK`")
