"""Exact match: an answer is right if it is its reference; both are stripped at their ends unless `strip = false`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric."""
    return ExactMatch(scoring)


class ExactMatch(Metric):
    """The share of answers that equal their reference: both stripped of white space at their ends, or byte for byte."""

    def __init__(self, scoring: Scoring) -> None:
        self._read: Callable[[str], str] = str.strip if scoring.strip else str

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return 1 for an answer that is right and 0 for one that is not, (N, 1)."""
        pairs = zip(answers, examples, strict=True)
        return np.array([[float(self._read(answer) == self._read(example.answer))] for answer, example in pairs])
