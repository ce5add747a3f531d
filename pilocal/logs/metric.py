"""Which metric suits some answers, and why."""

from __future__ import annotations

import heapq
from collections import Counter
from hashlib import blake2b

FEW_WORDS = 8
"""Words of the answers, in the middle, up to which they are compared as a whole."""

LONGEST = 16
"""Answers of the most characters that are kept, to count their tokens."""

FORMS = 0.2
"""Of the answers: so many different ones, at most, are labels."""


class AnswerStatistics:
    """Counts answers as they come."""

    def __init__(self) -> None:
        self._words: Counter[int] = Counter()
        self._different: set[bytes] = set()
        self._objects = 0
        self._longest: list[tuple[int, str]] = []

    def add(self, answer: str) -> None:
        """Count an answer."""
        self._words[len(answer.split())] += 1
        self._different.add(blake2b(answer.strip().encode("utf-8", "replace"), digest_size=8).digest())
        self._objects += answer.strip()[:1] in ("{", "[")
        if (len(answer), answer) not in self._longest:
            heapq.heappush(self._longest, (len(answer), answer))
        if len(self._longest) > LONGEST:
            heapq.heappop(self._longest)

    @property
    def longest(self) -> list[str]:
        """The different answers of the most characters, a few of them."""
        return [answer for _, answer in self._longest]

    def metric(self) -> tuple[str, str]:
        """Return the metric, and why."""
        lengths = sorted(self._words.elements())
        total, middle = len(lengths), lengths[len(lengths) // 2] if lengths else 0
        different = len(self._different)
        if 2 * self._objects > total:
            return "exact_match", "most answers are JSON, in which every character counts"
        if different <= FORMS * total:
            return "exact_match", f"the answers are labels: {different} different ones in {total} records"
        if middle <= FEW_WORDS:
            return "exact_match", f"the answers are short: {middle} words in the middle"
        return "bleu", f"the answers are free text: {middle} words in the middle, and no two need be alike"
