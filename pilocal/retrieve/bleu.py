"""Sentence BLEU of the texts of a bank against one reference, from the n-grams that they share: all, or a shortlist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pilocal.retrieve.word_ngrams import ORDER, Counted, WordNgrams

DECIMALS = 9
"""Decimals that scores (0 to 100) are rounded to, so that ties are ties whatever the order of the arithmetic."""

KEY_BITS = 20
"""Bits of the likeness by which a shortlist is made; whole numbers, so that it is the same everywhere."""

PLACE_BITS = 32
LAST_PLACE = 2**PLACE_BITS - 1
"""Bits of the number of a text below them, and the largest such number."""


class Shortlist(NamedTuple):
    """The texts of a bank that are most like a reference."""

    numbers: NDArray[np.int64]
    """(S,) rising."""
    scores: NDArray[np.float64]
    """(S,) their BLEU, exactly."""
    whole: bool
    """Whether it has every text with a score above 0."""


class BleuBank:
    """Scores texts as `sacrebleu.sentence_bleu(text, [reference])` does.

    Each text is tokenized and counted once, and every n-gram remembers which texts contain it. A reference is compared
    only with those, all texts of an n-gram in one NumPy operation instead of one by one.

    >>> BleuBank(["ls -l /tmp", "pwd"]).scores("ls -a /tmp").round(1)
    array([35.4,  0. ])
    >>> BleuBank(["ls -l /tmp", "pwd"]).shortlist("ls -a /tmp", 5, 100).numbers
    array([0])
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sacrebleu.metrics.bleu import BLEU

        tokenize = BLEU().tokenizer
        self._numbers = {text: number for number, text in enumerate(texts)}
        self._ngrams = ngrams = WordNgrams(texts, lambda text: tokenize(text.rstrip()).split())
        totals = np.maximum(ngrams.lengths - np.arange(ORDER)[:, None], 0)
        self._there = totals > 0
        self._log_totals = np.log(np.maximum(totals, 1))
        self._all = totals.sum(axis=0)
        most = ngrams.held.max(initial=0) + ngrams.lengths.max(initial=0)
        self._logs = np.log(np.maximum(np.arange(most + 1), 1))
        # Where each text's n-grams of each order end.
        orders = np.searchsorted(ngrams.bounds, ngrams.grams, side="right") - 1
        texts_E = np.repeat(np.arange(len(texts)), np.diff(ngrams.starts))
        per_order = np.bincount(texts_E * ORDER + orders, minlength=ORDER * len(texts))
        self._ends = np.cumsum(per_order).reshape(len(texts), ORDER)
        # What a search writes into; zeros before and after, but for the second.
        self._shared = np.zeros(len(texts), dtype=np.int32)
        self._last = np.zeros(len(texts), dtype=np.int32)
        self._wanted = np.zeros(ngrams.bounds[-1], dtype=np.int32)

    def scores(self, reference: str) -> NDArray[np.float64]:
        """Return the BLEU, 0 to 100, of every text of the bank against the reference: (N,) float64.

        As in sacrebleu, missing n-grams are smoothed exponentially, and a short text has a lower order.
        """
        ngrams, own = self._ngrams, self._counted(reference)
        matches = np.zeros((ORDER, len(ngrams.lengths)), dtype=np.int32)
        orders = np.searchsorted(ngrams.bounds, own.grams, side="right") - 1
        begins, ends = ngrams.begins[own.grams], ngrams.begins[own.grams + 1]
        for order, count, begin, end in zip(orders, own.counts, begins, ends, strict=True):
            matches[order, ngrams.holders[begin:end]] += np.minimum(ngrams.held[begin:end], count)
        scores = np.zeros(len(ngrams.lengths))
        # Without a word in common the score is 0.
        found = np.flatnonzero(matches[0])
        scores[found] = self._bleu(matches[:, found], found, own.length)
        return scores

    def shortlist(self, reference: str, most: int, looked_up: int) -> Shortlist:
        """Return the `most` texts that are alike in length and share most n-grams with the reference, scored exactly.

        The longest n-grams count first, and among them the rarest, until `looked_up` places of texts were looked up.
        """
        own = self._counted(reference)
        near, shared, whole = self._near(own, looked_up)
        if len(near) > most:
            sizes, total = self._all[near], _total(own)
            # The share of the longer one's n-grams, and once more how alike they are in length, which BLEU looks at.
            share = ((shared * np.minimum(sizes, total)) << KEY_BITS) // np.maximum(sizes, total) ** 2
            # Ties go by number.
            keys = (share << PLACE_BITS) | (LAST_PLACE - near)
            near, whole = LAST_PLACE - (np.partition(keys, len(keys) - most)[len(keys) - most :] & LAST_PLACE), False
        near.sort()
        matches = self._matches(own, near)
        scores = np.zeros(len(near))
        found = np.flatnonzero(matches[0])
        scores[found] = self._bleu(matches[:, found], near[found], own.length)
        return Shortlist(near, scores, whole)

    def _near(self, own: Counted, looked_up: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
        """Return the texts with some n-gram of a text, how many each shares, and whether these are all texts."""
        ngrams, taken, left = self._ngrams, list[Any](), 0
        begins, ends = ngrams.begins[own.grams].tolist(), ngrams.begins[own.grams + 1].tolist()
        for begin, end in zip(reversed(begins), reversed(ends), strict=True):
            if end - begin <= looked_up:
                looked_up -= end - begin
                taken.append(ngrams.holders[begin:end])
            else:
                left += 1
        if left and not taken:  # each of its n-grams is in too many
            taken = [ngrams.holders[begins[-1] : begins[-1] + looked_up]]
        near = np.concatenate(taken).astype(np.int64) if taken else np.zeros(0, dtype=np.int64)
        np.add.at(self._shared, near, np.int32(1))  # of another type it is 40 times as slow
        # Each once: where it came last.
        places = np.arange(len(near), dtype=np.int32)
        self._last[near] = places
        near = near[self._last[near] == places]
        shared, self._shared[near] = self._shared[near].astype(np.int64), 0
        return near, shared, not left

    def _matches(self, own: Counted, near: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return how many n-grams of each order some texts share with one: (ORDER, S)."""
        ngrams = self._ngrams
        self._wanted[own.grams] = own.counts
        starts = ngrams.starts[near]
        sizes = ngrams.starts[near + 1] - starts
        begins = np.cumsum(sizes) - sizes
        places = np.arange(sizes.sum()) + np.repeat(starts - begins, sizes)
        shared = np.minimum(ngrams.counts[places], self._wanted[ngrams.grams[places]])
        self._wanted[own.grams] = 0
        until = np.concatenate(([0], np.cumsum(shared, dtype=np.int32)))
        ends: NDArray[np.int32] = until[self._ends[near] + (begins - starts)[:, None]].T
        ends[1:] -= ends[:-1].copy()
        ends[0] -= until[begins]
        return ends

    def _bleu(self, matched: NDArray[np.int32], numbers: NDArray[np.int64], length: int) -> NDArray[np.float64]:
        """Return the BLEU of some texts by the n-grams that they share with a reference of so many words: (S,)."""
        there = self._there[:, numbers]
        missing = np.cumsum((matched == 0) & there, axis=0)
        logs = np.where(matched > 0, self._logs[matched], -np.log(2) * missing) - self._log_totals[:, numbers]
        mean = (logs * there).sum(axis=0) / there.sum(axis=0)
        brevity = np.minimum(0, 1 - length / self._ngrams.lengths[numbers])
        return np.asarray(np.round(100 * np.exp(mean + brevity), DECIMALS))

    def _counted(self, reference: str) -> Counted:
        number = self._numbers.get(reference)
        return self._ngrams.count(reference) if number is None else self._ngrams.of(number)


def _total(own: Counted) -> int:
    """Return how many n-grams a text has, repeated ones as often as it has them."""
    return sum(max(own.length - order, 0) for order in range(ORDER))
