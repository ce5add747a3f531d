"""Every n-gram of words in some texts as numbers: which texts hold it, and which each text holds."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER = 4
"""Longest n-gram, in words."""

Ints = NDArray[np.int64]


class Counted(NamedTuple):
    """The n-grams of one text."""

    grams: NDArray[np.int32]
    """(E,) their numbers, rising: by order, and within an order from the commonest to the rarest."""
    counts: NDArray[np.int32]
    """(E,) how often the text has each."""
    length: int
    """Its words, those that no other text has among them."""


class WordNgrams:
    """The n-grams of N texts of T words: G different ones, E pairs of a text and an n-gram in it.

    Texts are cut once. All memory is in arrays of E or G integers, about 40 bytes for each pair.
    """

    def __init__(self, texts: Sequence[str], cut: Callable[[str], Sequence[str]]) -> None:
        """Number the n-grams; `cut` returns the words of a text."""
        self._cut = cut
        self._words: dict[str, int] = {}
        words, lengths = array("q"), array("q")
        for text in texts:
            found = cut(text)
            lengths.append(len(found))
            words.extend(self._words.setdefault(word, len(self._words)) for word in found)
        self.lengths = np.array(lengths, dtype=np.int64)
        """(N,) words of each text."""
        self._keys: list[Ints] = []
        self._renumbered: list[Ints] = []
        pairs = self._count(np.array(words, dtype=np.int64))
        self.bounds = np.cumsum([0, *map(len, self._renumbered)])
        """(ORDER + 1,) the number of the first n-gram of each order, and G."""
        texts_E, grams_E, counts_E = (np.concatenate(some).astype(np.int32) for some in zip(*pairs, strict=True))
        by_text = np.lexsort((grams_E, texts_E))
        self.grams, self.counts = grams_E[by_text], counts_E[by_text]
        """(E,) The n-grams of text i, rising, and their counts, are at `starts[i]` to `starts[i + 1]`."""
        self.starts = np.searchsorted(texts_E[by_text], np.arange(len(texts) + 1))
        by_gram = np.lexsort((texts_E, grams_E))
        self.holders, self.held = texts_E[by_gram], counts_E[by_gram]
        """(E,) The texts with n-gram g, rising, and its counts there, are at `begins[g]` to `begins[g + 1]`."""
        self.begins = np.searchsorted(grams_E[by_gram], np.arange(self.bounds[-1] + 1))

    def _count(self, words_T: Ints) -> list[tuple[Ints, Ints, Ints]]:
        """Return for each order the pairs of a text and an n-gram in it, and how often; (E_n,) each."""
        text_T = np.repeat(np.arange(len(self.lengths)), self.lengths)
        left_T = np.repeat(np.cumsum(self.lengths), self.lengths) - np.arange(len(words_T))
        gram_T, found, first = words_T, [], 0
        for order in range(1, ORDER + 1):
            places = np.flatnonzero(left_T >= order)
            if order > 1:
                # An n-gram is one with a word less and one more word.
                key = gram_T[places] * len(self._words) + words_T[places + order - 1]
                keys, raw = np.unique(key, return_inverse=True)
                gram_T = np.zeros(len(words_T), dtype=np.int64)
                gram_T[places] = raw
                self._keys.append(keys)
            count = len(self._words) if order == 1 else len(keys)
            pair, often = np.unique(text_T[places] * count + gram_T[places], return_counts=True)
            text, raw = pair // max(count, 1), pair % max(count, 1)
            commonest = np.argsort(-np.bincount(raw, minlength=count), kind="stable")
            self._renumbered.append(np.empty(count, dtype=np.int64))
            self._renumbered[-1][commonest] = first + np.arange(count)
            found.append((text, self._renumbered[-1][raw], often))
            first += count
        return found

    def of(self, number: int) -> Counted:
        """Return the n-grams of a text by its number."""
        held = slice(self.starts[number], self.starts[number + 1])
        return Counted(self.grams[held], self.counts[held], int(self.lengths[number]))

    def count(self, text: str) -> Counted:
        """Return those n-grams of any text that a text here holds, too."""
        cut = self._cut(text)
        words = np.array([self._words.get(word, -1) for word in cut], dtype=np.int64)
        raw, found = words, [self._renumbered[0][words[words >= 0]]]
        for order, keys in enumerate(self._keys, 2):
            raw, last = raw[: len(words) - order + 1], words[order - 1 :]
            key = np.where((raw >= 0) & (last >= 0), raw * len(self._words) + last, -1)
            place = np.searchsorted(keys, key)
            known = place < len(keys)
            known[known] = keys[place[known]] == key[known]
            raw = np.where(known, place, -1)
            found.append(self._renumbered[order - 1][raw[known]])
        grams, counts = np.unique(np.concatenate(found).astype(np.int32), return_counts=True)
        return Counted(grams, counts.astype(np.int32), len(cut))
