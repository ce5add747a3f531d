"""The training of a run in a few lines, told from its folder as the page of `pilocal watch` is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from pilocal.errors import PilocalError
from pilocal.watch.state import State
from pilocal.watch.watcher import Watcher
from pilocal.watch.words import ASCII_LEVELS, LEVELS, duration, sparkline

EVERY = 1.0
"""Seconds between two looks at the folder."""

WIDEST = 80
"""Letters of the sparkline."""


class TrainingView:
    """Looks at a run folder while this process trains in it."""

    def __init__(self, run: Path | None) -> None:
        """Take the run folder, which need not be there yet; without one there is nothing to see."""
        self._run = run
        self._watcher: Watcher | None = None
        self._state: State | None = None
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def state(self, step: str) -> State | None:
        """Return the state of the training that the step is, from its first optimizer step on; None for other steps."""
        if self._run is None or not step:
            return None
        with self._lock:  # what draws and what trains both ask
            if time.monotonic() - self._looked >= EVERY:
                self._looked = time.monotonic()
                try:
                    self._watcher = self._watcher or Watcher(self._run)
                    self._state = self._watcher.look()
                except (PilocalError, OSError):
                    self._state = None  # it is not there yet; what is wrong with it, the run itself will say
            state = self._state
        return state if state and state.training == step and state.trains and state.step else None

    def lines(self, state: State, console: Console) -> RenderableType:
        """Return what a terminal shows."""
        assert self._watcher is not None
        plain = console.options.ascii_only
        losses = [[line.loss for line in stage] for stage in self._watcher.series()]
        width = min(WIDEST, max(8, console.width - 2))
        marks = sparkline(losses, width, ASCII_LEVELS if plain else LEVELS, "|" if plain else "│")
        texts = [Text(f"{state.training}: {where(state)}", style="bold")]
        texts.append(Text(marks, style="cyan", no_wrap=True, overflow="crop"))
        return Group(*texts, Text(figures(state)), Text(left(state)))


def plain_line(state: State) -> str:
    """Return it all as one line, for a log file."""
    return "; ".join(filter(None, (f"{state.training}: {where(state)}", figures(state), left(state))))


def where(state: State) -> str:
    """Return the stage and the step."""
    stage = state.stages[state.stage or 0]
    kept = "" if stage.tau is None else f" (tau {stage.tau:.2g}, {stage.shots} shots)"
    return f"{state.position}{kept}, step {state.step:,}" + ("" if state.total is None else f" of {state.total:,}")


def figures(state: State) -> str:
    """Return the losses, the speed and the memory."""
    parts = []
    if state.loss is not None:
        parts.append(f"loss {state.loss:.4g}")
    if state.valid_loss is not None:
        parts.append(f"validation {state.valid_loss:.4g} (lowest {state.lowest_valid_loss:.4g})")
    if state.tokens_per_second is not None:
        parts.append(f"{state.tokens_per_second:,.0f} tokens/s")
    if state.peak_memory is not None:
        parts.append(f"peak {state.peak_memory / 2**30:.2f} GiB")
    return ", ".join(parts)


def left(state: State) -> str:
    """Return the time that is left, and what makes it less sure."""
    if state.seconds_left is None or state.stage_seconds_left is None:
        return ""
    own, whole = duration(state.stage_seconds_left), duration(state.seconds_left)
    parts = [f"about {own} left for the stage, {whole} for the training"]
    parts += [state.guess] if state.guess else []
    parts += [f"then {', '.join(state.then)}"] if state.then else []
    return "; ".join(parts)
