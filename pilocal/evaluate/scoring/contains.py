"""Contains: an answer is right if its words hold those of its reference, or of another form that the record accepts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring

WORD = re.compile(r"\w+")


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric."""
    return Contains()


class Contains(Metric):
    """The share of answers in which the words of the reference stand side by side; case and punctuation do not count.

    A record's `accepts` lists further forms, any of which will do.
    """

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError for a form without a word, which every answer would hold, and where `accepts` is no list."""
        for example in examples:
            accepts = example.extra.get("accepts", [])
            if not isinstance(accepts, list) or not all(isinstance(form, str) for form in accepts):
                fix = 'write "accepts": ["...", "..."]'
                raise InputError(f"test example {example.id}", "accepts is a list of texts", got=accepts, fix=fix)
            for form in _forms(example):
                if not WORD.search(form):
                    what = "every answer would hold this form"
                    raise InputError(f"test example {example.id}", what, got=form, fix="write words or numbers")

    def objection(self, answer: str) -> str | None:
        """Refuse an answer without a word: as a reference, every answer would hold it."""
        return None if WORD.search(answer) else "it holds no word, so that every answer would do"

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each answer whether it holds the words of another, or the other its words."""
        return [holds(one, other) or holds(other, one) for one, other in zip(answers, others, strict=True)]

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return 1 for an answer that is right and 0 for one that is not, (N, 1)."""
        pairs = zip(answers, examples, strict=True)
        return np.array([[float(any(holds(answer, form) for form in _forms(one)))] for answer, one in pairs])


def _forms(example: Example) -> list[str]:
    return [example.answer, *example.extra.get("accepts", [])]


def words(text: str) -> list[str]:
    """Return the words of a text, without case and punctuation.

    >>> words("We open at 9:30.")
    ['we', 'open', 'at', '9', '30']
    """
    return WORD.findall(text.casefold())


def holds(answer: str, form: str) -> bool:
    """Tell whether an answer has the words of a form side by side.

    >>> holds("We open at 9:30, on weekdays.", "9.30"), holds("in 129 days", "29 days")
    (True, False)
    """
    said, wanted = (f" {' '.join(words(text))} " for text in (answer, form))
    return wanted in said
