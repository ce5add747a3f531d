"""Whether two answers say the same by their task's own metric, for shadow requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pilocal.errors import PilocalError
from pilocal.evaluate.scoring.metrics import Metric, make_metric
from pilocal.run_folder.shipped import Shipped
from pilocal.task.tables import METRICS

SECONDS = 2.0
"""The most that an answer may take to be compared, where its metric runs it (sqlite)."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """An answer that was compared with the full prompt's."""

    task: str
    same: bool
    """Whether both are the same text, but for white space around it."""
    agrees: bool | None = None
    """Whether both say the same by the task's metric; None where it cannot compare answers here."""


def serving_metrics(tasks: Sequence[Shipped], warn: Callable[[str], object]) -> dict[str, Metric]:
    """Return the metrics that can compare two answers here, by the names of their tasks; warn of those that cannot."""
    found = {}
    for task in tasks:
        try:
            metric, why = _make(task)
        except (PilocalError, ImportError) as error:
            metric, why = None, str(error)
        if metric is not None:
            found[task.name] = metric
        else:
            warn(f"{task.name}: --shadow-share counts equal texts alone: {why}")
    return found


def _make(task: Shipped) -> tuple[Metric | None, str]:
    """Return a task's metric, or None and why it cannot compare answers here."""
    if task.metric is None:
        return None, "its export does not name the metric; `pilocal run` adds it"
    if task.metric not in METRICS:
        return None, f"this version has no metric {task.metric}"
    limited = replace(task.scoring, timeout=min(task.scoring.timeout or SECONDS, SECONDS))
    metric = make_metric(task.metric, limited, task.folder)
    return (None, f"the metric {task.metric} needs {metric.needs}") if metric.needs else (metric, "")


def compare(task: str, said: str, full: str, query: str, metric: Metric | None) -> Agreement:
    """Return how an answer compares with the full prompt's to the same query."""
    same = said.strip() == full.strip()
    return Agreement(task, same, None if metric is None else same or metric.agree([said], [full], [query])[0])
