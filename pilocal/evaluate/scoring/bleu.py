"""BLEU: how many words and phrases an answer shares with its reference; white space only separates words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring

ORDER = 4
"""Longest n-gram, in words."""


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric."""
    return Bleu()


class Bleu(Metric):
    """sacrebleu's corpus BLEU (13a tokens, exponential smoothing), divided by 100; it strips both texts."""

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._metric = BLEU()

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return the sufficient statistics, (N, 10): both lengths, then matches and n-grams of order 1 to 4."""
        from sacrebleu.metrics.helpers import extract_all_word_ngrams

        rows = np.zeros((len(answers), 2 + 2 * ORDER))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            texts = (self._metric.tokenizer(text.rstrip()) for text in (answer, example.answer))
            (ours, length), (theirs, wanted) = (extract_all_word_ngrams(text, 1, ORDER) for text in texts)
            row[:2] = length, wanted
            for ngram, count in ours.items():
                row[1 + len(ngram)] += min(count, theirs[ngram])
                row[1 + ORDER + len(ngram)] += count
        return rows

    def total(self, marks: NDArray[np.float64]) -> float:
        """Return the BLEU of the summed statistics."""
        length, wanted, *counts = (int(value) for value in marks.sum(axis=0))
        correct, total = counts[:ORDER], counts[ORDER:]
        score = self._metric.compute_bleu(correct, total, length, wanted, smooth_method="exp")
        return float(score.score) / 100
