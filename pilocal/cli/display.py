"""What a person sees on stderr during the work: one live view, or plain lines, warnings and one line per step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from pilocal.cli.live import TrainingView, plain_line
from pilocal.flow.listeners import Listeners, StepResult, unheard
from pilocal.progress import Progress
from pilocal.watch.words import duration

EVERY = 30.0
"""Seconds between two lines, where no live view can be drawn."""

BEAT = 1.0
"""Seconds between two looks at whether a line is due."""


class Display(Protocol):
    """Shows what goes on."""

    def begin(self, name: str) -> None:
        """Show that a step begins."""

    def finish(self) -> None:
        """Show that it is over."""

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show how far some work is, see `pilocal.progress`."""


@contextmanager
def displaying(run: Path | None = None) -> Iterator[tuple[Display, Console]]:
    """Show a live view on stderr, with the training in the folder `run`; the console prints lines above it.

    Where stderr is no terminal, long work gets a line every EVERY seconds, also work that reports nothing. With a `run`
    these lines wait for the first that is heard: a process that only helps another one to train says nothing.
    """
    console, view = Console(stderr=True), TrainingView(run)
    if console.is_terminal and not console.is_dumb_terminal:
        screen = _Screen(console, view)
        with Live(console=console, get_renderable=screen.render, transient=True):
            yield screen, console
    else:
        with _Lines(console, view, waits=run is not None) as lines:
            yield lines, console


@contextmanager
def progress_bars() -> Iterator[tuple[Progress, Console]]:
    """Show how far each kind of work is, on stderr; the console prints lines between."""
    with displaying() as (display, console):
        yield display.report, console


class _Left(TimeRemainingColumn):
    """The time that is left, but for a training, of which more is known."""

    def render(self, task: Task) -> Text:
        """Return it."""
        return Text() if task.fields["viewed"] else super().render(task)


class _Screen:
    """One view: the training, a bar per kind of work, and the step where nothing is reported."""

    def __init__(self, console: Console, view: TrainingView) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[note]}"),
        )
        self._console = console
        self._view = view
        self._bars = Bars(*columns, console=console, auto_refresh=False)
        self._tasks: dict[str, Any] = {}
        self._step, self._begun = "", 0.0

    def begin(self, name: str) -> None:
        self._step, self._begun = name, time.monotonic()

    def finish(self) -> None:
        self._step = ""

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        viewed = what == self._step and self._view.state(what) is not None
        said: dict[str, Any] = {"note": "" if viewed else note, "viewed": viewed}
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, **said)
        self._bars.update(self._tasks[what], completed=done, total=total, **said)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))

    def render(self) -> RenderableType:
        """Return all that is shown now; called by the thread that draws."""
        step, parts = self._step, list[RenderableType]()
        if state := self._view.state(step):
            parts.append(self._view.lines(state, self._console))
        if self._bars.tasks:
            parts.append(self._bars.get_renderable())
        elif step:
            parts.append(Text(f"{step}: at work for {duration(time.monotonic() - self._begun)}"))
        return Group(*parts)


@dataclass(frozen=True, slots=True)
class _Reported:
    """How far some work is."""

    what: str
    done: int
    total: int
    note: str

    def __str__(self) -> str:
        return f"{self.what}: {self.done} of {self.total}" + (f"; {self.note}" if self.note else "")


class _Lines:
    """A line from time to time, by a thread of its own: a step that compiles or downloads reports nothing."""

    def __init__(self, console: Console, view: TrainingView, *, waits: bool = False) -> None:
        self._console = console
        self._view = view
        self._heard = not waits
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lines", daemon=True)
        self._open: dict[str, _Reported] = {}
        self._step = self._said = ""
        self._last = self._since = time.monotonic()

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def begin(self, name: str) -> None:
        with self._lock:
            self._heard = True
            self._step, self._since = name, time.monotonic()

    def finish(self) -> None:
        with self._lock:
            self._step, self._since = "", time.monotonic()
            self._open.clear()

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        with self._lock:
            self._heard = True
            known = self._open.pop(what, None)
            if done < total:
                self._open[what] = _Reported(what, done, total, note)  # the last of them is shown
            if self._open.get(what) != known:
                self._since = time.monotonic()
        self.look()

    def look(self) -> None:
        """Print a line if one is due."""
        with self._lock:
            now = time.monotonic()
            if not self._heard or now - self._last < EVERY:
                return
            self._last = now
            text, known = self._text(), self._said
            self._said = text
            if text in ("", self._step, known):
                between = ": " if text == self._step else "; "
                text = between.join(filter(None, (text, f"at work for {duration(now - self._since)}")))
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self) -> str:
        """Return what is known: how the training is, or how far the work that was reported last; else the step."""
        if state := self._view.state(self._step):
            return plain_line(state)
        return str(next(reversed(self._open.values()))) if self._open else self._step

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.look()


@contextmanager
def listening(
    heard: Callable[[StepResult], None] = unheard, report_to: str | None = None, run: Path | None = None
) -> Iterator[Listeners]:
    """Yield listeners that show a run on stderr: its training in the folder `run`, work, steps and warnings.

    `heard` is called with each step.
    """
    with displaying(run) as (display, console):

        def step(result: StepResult) -> None:
            heard(result)
            display.finish()
            console.print(step_line(result), markup=False, soft_wrap=True)

        yield Listeners(
            progress=display.report, warn=warning_on(console), begin=display.begin, step=step, report_to=report_to
        )


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
