"""What a metric is, and how a task gets its own.

Every metric has a file of its name in this folder, whose `make` returns it, and a line in `task.tables.METRICS`, which
says which keys of `[scoring]` it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.progress import Progress, silent
from pilocal.run_folder.hashes import sha256_file
from pilocal.task import Example, Scoring, Task

AGREES = 0.5
"""The score of an answer, with another answer as its reference, from which on both say the same."""


def same_texts(answers: Sequence[str], others: Sequence[str]) -> list[bool]:
    """Tell of each answer whether another is the same but for white space around it.

    >>> same_texts(["a ", "b"], ["a", "B"])
    [True, False]
    """
    return [answer.strip() == other.strip() for answer, other in zip(answers, others, strict=True)]


class Metric(Protocol):
    """Turns answers into marks, and marks into one score between 0 and 1.

    The score of some of the queries is the total of their marks, so that it can be resampled. A metric that derives
    from this class is the mean of its marks unless it says otherwise.
    """

    needs: str = ""
    """What it needs beside two answers to compare them, and a server has not; empty where that is nothing."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError if the examples cannot be scored, before any answer is made."""
        return

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return what each query contributes, (N, S), from the answers to N examples."""
        ...

    def total(self, marks: NDArray[np.float64]) -> float:
        """Return the score, 0 to 1, of N marks, (N, S)."""
        return float(marks.mean())

    def objection(self, answer: str) -> str | None:
        """Return why an answer cannot be right, whatever its reference is; None where only a reference can tell."""
        return None

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each answer whether it says what another one says to the same query.

        It does where both are the same text at least, and where it scores AGREES with the other as its reference.
        """
        found = []
        for answer, other, query in zip(answers, others, queries, strict=True):
            same = answer.strip() == other.strip()
            reference = Example(id="agreement", query=query, answer=other)
            found.append(same or self.total(self.marks([answer], [reference])) >= AGREES)
        return found

    def files(self) -> list[Path]:
        """Return the files that decide the marks, such as a database."""
        return []


def make_metric(name: str, scoring: Scoring, folder: Path) -> Metric:
    """Return the metric of that name for the task in `folder`; raises InputError if it needs something that is missing.

    `name` is one of `task.METRICS`.
    """
    metric: Metric = import_module(f"{__package__}.{name}").make(scoring, folder)
    return metric


def metric_facts(task: Task, metric: Metric) -> dict[str, Any]:
    """Return what decides a task's marks beside answers and examples; files by their SHA-256."""
    scoring = asdict(task.scoring)
    if scoring["strip"]:
        del scoring["strip"]  # as in the marks of runs that were made before there was such a key
    return {"metric": task.metric, "scoring": scoring, "sha256": [sha256_file(path) for path in metric.files()]}
