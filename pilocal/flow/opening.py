"""Opening a run folder for writing: for a task and a schedule, or again with those that it was made with."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilocal.errors import RunError
from pilocal.flow.checks import checked_context
from pilocal.flow.context import Context, Listeners
from pilocal.run.folder import RunDir
from pilocal.task import load_task
from pilocal.task.schedule import DEFAULT, Adaptive, Schedule, Stage, load_schedule
from pilocal.training.backend import Backend

QUIET = Listeners()


@contextmanager
def open_task(
    task_folder: Path,
    schedule_path: Path | None,
    run_folder: Path | None,
    listeners: Listeners = QUIET,
    backend: Backend | None = None,
) -> Iterator[Context]:
    """Read a task and a schedule and open the run folder; `backend` is as for `checked_context`.

    Without a schedule the default is taken; without a run folder a temporary one, which is gone afterwards. Raises what
    `load_task`, `load_schedule`, `RunDir.locked` and `checked_context` raise.
    """
    task = load_task(task_folder)
    schedule = load_schedule(schedule_path) if schedule_path else DEFAULT
    temporary = Path(tempfile.mkdtemp(prefix="pilocal-")) if run_folder is None else None
    try:
        with RunDir.locked(run_folder or temporary or Path(), task=task.name, folder=task.folder) as run:
            yield checked_context(task, schedule, run, listeners, backend)
    finally:
        if temporary:
            shutil.rmtree(temporary)


@contextmanager
def open_run(run_folder: Path, listeners: Listeners = QUIET) -> Iterator[Context]:
    """Open a run again, with the task and the schedule that it was made with; raises RunError when it has none."""
    state = RunDir(run_folder).state
    try:
        task_file = Path(state["task"]["folder"]) / state["task_file"]
        stages = tuple(Stage(**stage) for stage in state["schedule"])
        adaptive = Adaptive(**state["adaptive"]) if state["adaptive"] else None
    except (KeyError, TypeError):
        fix = "point at the run folder of `pilocal run TASK`"
        raise RunError(run_folder, "no run has begun here", fix=fix) from None
    task = load_task(task_file)
    with RunDir.locked(run_folder, task=task.name, folder=task.folder) as run:
        yield checked_context(task, Schedule(stages, adaptive), run, listeners)
