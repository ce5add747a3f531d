"""Sentence BLEU of every text of a bank against a reference at once: exact, by the n-grams that they share."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLEU_ORDER = 4
"""Longest n-gram, in words."""

DECIMALS = 9
"""Scores (0 to 100) are rounded to these, so that equal ones are equal whatever the order of the arithmetic."""


class BleuBank:
    """Scores texts as `sacrebleu.sentence_bleu(text, [reference])` does.

    Each text is tokenized and counted once, and every n-gram remembers which texts hold it. A reference meets only
    those texts, all of an n-gram's in one step of numpy, instead of every text one by one.

    >>> BleuBank(["ls -l /tmp", "pwd"]).scores("ls -a /tmp").round(1)
    array([35.4,  0. ])
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._tokenize = BLEU().tokenizer
        self._number: dict[tuple[str, ...], int] = {}
        numbers, holders, counts, lengths = array("q"), array("q"), array("q"), array("q")
        for holder, text in enumerate(texts):
            ngrams, length = self._ngrams(text)
            lengths.append(length)
            for ngram, count in ngrams.items():
                numbers.append(self._number.setdefault(ngram, len(self._number)))
                holders.append(holder)
                counts.append(count)
        order = np.argsort(_ints(numbers), kind="stable")
        self._holders, self._counts = _ints(holders)[order], _ints(counts)[order]
        # The n-gram of number n is held by the texts at n to n + 1.
        self._starts = np.searchsorted(_ints(numbers)[order], np.arange(len(self._number) + 1)).tolist()
        self._lengths = _ints(lengths)
        totals = np.maximum(self._lengths - np.arange(BLEU_ORDER)[:, None], 0)
        self._there = totals > 0
        self._log_totals = np.log(np.maximum(totals, 1))
        self._logs = np.log(np.maximum(np.arange(self._counts.max(initial=0) + self._lengths.max(initial=0) + 1), 1))

    def scores(self, reference: str) -> NDArray[np.float64]:
        """Return the BLEU, 0 to 100, of every text of the bank against the reference: (N,) float64.

        Missing n-grams are smoothed exponentially and a text's order is what its length allows, as sacrebleu does it.
        """
        ngrams, length = self._ngrams(reference)
        matches = np.zeros((BLEU_ORDER, len(self._lengths)), dtype=np.int64)
        for ngram, count in ngrams.items():
            number = self._number.get(ngram)
            if number is not None:
                held = slice(self._starts[number], self._starts[number + 1])
                matches[len(ngram) - 1, self._holders[held]] += np.minimum(self._counts[held], count)
        scores = np.zeros(len(self._lengths))
        # Without a word in common the score is 0.
        found = np.flatnonzero(matches[0])
        matched, there = matches[:, found], self._there[:, found]
        missing = np.cumsum((matched == 0) & there, axis=0)
        logs = np.where(matched > 0, self._logs[matched], -np.log(2) * missing) - self._log_totals[:, found]
        mean = (logs * there).sum(axis=0) / there.sum(axis=0)
        brevity = np.minimum(0, 1 - length / self._lengths[found])
        scores[found] = np.round(100 * np.exp(mean + brevity), DECIMALS)
        return scores

    def _ngrams(self, text: str) -> tuple[dict[tuple[str, ...], int], int]:
        from sacrebleu.metrics.helpers import extract_all_word_ngrams

        ngrams, length = extract_all_word_ngrams(self._tokenize(text.rstrip()), 1, BLEU_ORDER)
        return ngrams, length


def _ints(numbers: array[int]) -> NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)
