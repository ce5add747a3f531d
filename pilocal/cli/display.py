"""What a person sees on stderr during the work: bars, warnings and one line per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pilocal.flow.listeners import Listeners, StepResult, unheard
from pilocal.progress import Progress

EVERY = 30.0
"""Seconds between two lines about one kind of work, where no bar can be drawn."""


@contextmanager
def progress_bars() -> Iterator[tuple[Progress, Console]]:
    """Show one bar per kind of work, on stderr; the console prints lines above the bars.

    Where stderr is no terminal, work that takes longer than EVERY gets a line from time to time.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console), console
        return
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note=note)
            bars.update(tasks[what], completed=done, total=total, note=note)
            if done >= total:
                bars.remove_task(tasks.pop(what))

        yield report, bars.console


def _lines(console: Console) -> Progress:
    """Return what prints how far each kind of work is, at most every EVERY seconds."""
    last: dict[str, float] = {}

    def report(what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done >= total:
            last.pop(what, None)
        elif now - last.setdefault(what, now) >= EVERY:
            last[what] = now
            said = f"{what}: {done} of {total}" + (f"; {note}" if note else "")
            console.print(said, markup=False, highlight=False, soft_wrap=True)

    return report


@contextmanager
def listening(heard: Callable[[StepResult], None] = unheard, report_to: str | None = None) -> Iterator[Listeners]:
    """Yield listeners that show a run on stderr: bars, steps and warnings; `heard` is called with each step."""
    with progress_bars() as (progress, console):

        def step(result: StepResult) -> None:
            heard(result)
            console.print(step_line(result), markup=False, soft_wrap=True)

        yield Listeners(progress=progress, warn=warning_on(console), step=step, report_to=report_to)


def warning_on(console: Console) -> Callable[[str], None]:
    """Return a function that prints a warning as one line, and the same warning only once."""
    said = set[str]()

    def warn(text: str) -> None:
        if text not in said:
            said.add(text)
            console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    return warn


def step_line(result: StepResult) -> str:
    """Return the line about a finished step."""
    return (
        f"{result.name}: "
        + ("nothing to do" if result.skipped else f"done in {result.seconds:.1f} s")
        + (f"; {result.note}" if result.note else "")
    )
