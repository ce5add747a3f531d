"""The tables of ls and clean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from pilocal.cli.tables import text_table as table
from pilocal.flow.cleaning import Waste
from pilocal.flow.listing import RunLine
from pilocal.task.text import byte_size, counted

NAME = 28
"""Letters of a folder's name in a table of 80 columns."""


def runs_table(runs: Sequence[RunLine], below: Path) -> RenderableType:
    """Return the runs with their scores and sizes; their names are those below a folder."""
    rows = [
        [
            _name(run.folder, below),
            _end(run.task, 16),
            run.done,
            _score(run.score),
            _score(run.prompted),
            byte_size(run.bytes),
        ]
        for run in runs
    ]
    notes = [
        "done: the step finished last; score: of what is served, asked without the prompt;",
        f"prompted: of the base with it; {counted(len(runs), 'run')}, {byte_size(sum(run.bytes for run in runs))}",
    ]
    return table("Runs", ("run", "task", "done", "score", "prompted", "size"), rows, notes, left=3)


def waste_table(found: Sequence[Waste], below: Path) -> RenderableType:
    """Return what can go from which run."""
    rows = [[_name(each.folder, below), each.kind, f"{len(each.files):,}", byte_size(each.bytes)] for each in found]
    notes = [f"together {byte_size(sum(each.bytes for each in found))}"]
    return table("What can go", ("run", "what", "files", "frees"), rows, notes, left=2)


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _name(folder: Path, below: Path) -> str:
    """Return the name of a folder below another, its end where it is long."""
    return _end(str(folder.relative_to(below)) if folder.is_relative_to(below) else str(folder), NAME)


def _end(text: str, letters: int) -> str:
    """Return the last letters of a text.

    >>> _end("task/run", 20), _end("a/very/long/name/run", 12)
    ('task/run', '.../name/run')
    """
    return text if len(text) <= letters else "..." + text[3 - letters :]
