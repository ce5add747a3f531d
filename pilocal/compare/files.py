"""A comparison from a task folder to its files: compare.json, compare.md and curve.svg."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilocal.compare.comparison import open_comparison
from pilocal.compare.design import Design
from pilocal.compare.markdown import markdown
from pilocal.compare.picture import CURVE, write_curve
from pilocal.compare.table import Prices, make_table
from pilocal.progress import Progress, silent
from pilocal.run.files import replacing, write_json


def compare(
    task: Path,
    design: Design,
    *,
    folder: Path | None = None,
    prices: Prices | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
    report: Callable[[str, float], None] = lambda name, score: None,
) -> dict[str, Any]:
    """Run every arm of a design on a task and return what compare.json says; called again, it resumes.

    All files are in `folder`, by default TASK/compare. `prices` adds the break-even in money. `report` gets the name
    and the score of every new result. Raises InputError or Faults for the task or the design, RunError if another
    process has the folder, and what the steps of a run raise.
    """
    folder = folder or (task.parent if task.is_file() else task) / "compare"
    with open_comparison(task, folder, design, progress, warn) as comparison:
        total = comparison.metric.total
        results = comparison.results(lambda result: report(result.name, total(result.marks_NS)))
        table = make_table(comparison, results, prices)
        write_json(folder / "compare.json", table)
        with replacing(folder / "compare.md") as file:
            file.write(markdown(table))
        if table["curve"]:
            write_curve(table, folder / CURVE)
    return table
