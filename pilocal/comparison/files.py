"""A comparison from a task folder to its files: compare.json, compare.md, and a picture of each curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilocal.comparison.comparison import open_comparison
from pilocal.comparison.design import Design
from pilocal.comparison.markdown import markdown
from pilocal.comparison.picture import CURVE, RESIDUE, STRENGTHS, write_curve, write_residue, write_strengths
from pilocal.comparison.table import make_table
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.saving import Prices
from pilocal.packages import require_packages
from pilocal.run_folder.files import replacing, write_json
from pilocal.task.text import path_of
from pilocal.training.backend import Backend, backend_named

DEFAULT_DESIGN = Design()
"""Every arm that needs nothing but the task and the base, three seeds."""


def compare(
    task: str | Path,
    design: Design = DEFAULT_DESIGN,
    *,
    run: str | Path | None = None,
    prices: Prices | None = None,
    backend: Backend | str | None = None,
    listeners: Listeners = QUIET,
    report: Callable[[str, float], None] = lambda name, score: None,
) -> dict[str, Any]:
    """Run every arm of a design on a task and return what compare.json says; called again, it resumes.

    All files are in the folder `run`, by default TASK/compare. `prices` adds the break-even in money. `backend` is
    what trains, "mlx" or "torch", by default what trained the comparison so far. `report` gets the name and the score
    of every new result. Raises InputError or Faults for the task or the design, InputError if
    matplotlib is missing for a picture, RunError if another process has the folder, and what the steps of a run raise.
    """
    for picture, wanted in ((CURVE, design.curve), (STRENGTHS, design.has_strengths), (RESIDUE, design.residue)):
        if wanted:
            require_packages(picture, "matplotlib")
    task = path_of(task)
    folder = path_of(run) if run else default_folder(task)
    chosen = backend_named(backend) if isinstance(backend, str) else backend
    with open_comparison(task, folder, design, listeners, chosen) as comparison:
        total = comparison.metric.total
        results = comparison.results(lambda result: report(result.name, total(result.marks_NS)))
        table = make_table(comparison, results, prices)
        write_json(folder / "compare.json", table)
        with replacing(folder / "compare.md") as file:
            file.write(markdown(table))
        if table["curve"]:
            write_curve(table, folder / CURVE)
        if table["strengths"]:
            write_strengths(table, folder / STRENGTHS)
        if table["residue"]:
            write_residue(table, folder / RESIDUE)
    return table


def default_folder(task: Path) -> Path:
    """Return the folder of a comparison if none is given; `task` is a task folder or its task.toml."""
    return (task.parent if task.is_file() else task) / "compare"
