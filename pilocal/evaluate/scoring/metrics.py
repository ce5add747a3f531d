"""Metrics: what each query contributes, and the one score between 0 and 1 that it adds up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.progress import Progress, silent
from pilocal.run.hashes import sha256_file
from pilocal.task import Example, Scoring, Task


class Metric(Protocol):
    """Turns answers into marks, and marks into a score; a score of some queries again is the total of their marks."""

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError when the examples cannot be scored, before any answer is made."""

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return what each query contributes, (N, S), from the answers to N examples."""

    def total(self, marks: NDArray[np.float64]) -> float:
        """Return the score, 0 to 1, of N marks, (N, S)."""


class ExactMatch:
    """The share of answers that equal their reference but for white space at the ends."""

    def check(self, examples: Sequence[Example]) -> None:
        """Every example has an answer."""

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return 1 for an answer that is right and 0 for one that is not, (N, 1)."""
        pairs = zip(answers, examples, strict=True)
        return np.array([[float(answer.strip() == example.answer.strip())] for answer, example in pairs])

    def total(self, marks: NDArray[np.float64]) -> float:
        """Return the mean."""
        return float(marks.mean())


class Bleu:
    """sacrebleu's corpus BLEU (13a tokens, exponential smoothing), divided by 100."""

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._metric = BLEU()

    def check(self, examples: Sequence[Example]) -> None:
        """Every example has an answer."""

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return the sufficient statistics, (N, 10): both lengths, then matches and n-grams of order 1 to 4."""
        from sacrebleu.metrics.helpers import extract_all_word_ngrams

        rows = np.zeros((len(answers), 2 + 2 * BLEU_ORDER))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            texts = (self._metric.tokenizer(text.rstrip()) for text in (answer, example.answer))
            (ours, length), (theirs, wanted) = (extract_all_word_ngrams(text, 1, BLEU_ORDER) for text in texts)
            row[:2] = length, wanted
            for ngram, count in ours.items():
                row[1 + len(ngram)] += min(count, theirs[ngram])
                row[1 + BLEU_ORDER + len(ngram)] += count
        return rows

    def total(self, marks: NDArray[np.float64]) -> float:
        """Return the BLEU of the summed statistics."""
        length, wanted, *counts = (int(value) for value in marks.sum(axis=0))
        correct, total = counts[:BLEU_ORDER], counts[BLEU_ORDER:]
        score = self._metric.compute_bleu(correct, total, length, wanted, smooth_method="exp")
        return float(score.score) / 100


BLEU_ORDER = 4
"""Longest n-gram, in words."""


def make_metric(name: str, scoring: Scoring, folder: Path) -> Metric:
    """Return the metric of that name for the task in `folder`; raises InputError for what it needs and is missing."""
    if name == "python_tests":
        from pilocal.evaluate.scoring.python_tests import PythonTests

        return PythonTests(scoring, folder)
    if name == "sqlite":
        from pilocal.evaluate.scoring.sqlite import Sqlite

        return Sqlite(scoring, folder)
    if name == "command":
        from pilocal.evaluate.scoring.command import Command

        return Command(scoring, folder)
    return Bleu() if name == "bleu" else ExactMatch()


def metric_facts(task: Task) -> dict[str, Any]:
    """Return what decides a task's marks beside answers and examples; database and program by their SHA-256."""
    files = [task.folder / part for part in task.scoring.command]
    files += [task.files["database"]] if "database" in task.files else []
    hashes = [sha256_file(path) for path in files if path.is_file()]
    return {"metric": task.metric, "scoring": asdict(task.scoring), "sha256": hashes}
