"""Vectors of texts from their character n-grams: no model, and the same numbers in every process."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 512
"""Buckets that the n-grams are hashed into."""

BLOCK_BITS = 10
BLOCK = 2**BLOCK_BITS
"""Texts that are counted at once."""

ORDERS = (2, 3, 4)
"""Lengths of the n-grams, in characters."""

LETTER_BITS = (64 - BLOCK_BITS) // ORDERS[-1]
"""Bits of a character in the number of an n-gram."""

LETTERS = 2**LETTER_BITS - 1
"""Characters that have a number: the commonest of a pool."""

LEARNED = 20_000
"""Texts that the idf is learned from; of a larger pool some, spread evenly."""

Keys = NDArray[np.uint64]
Tell = Callable[[str, int, int], None]


class NgramVectors:
    """Hashed tf-idf over character n-grams; the idf is learned from a pool of texts.

    Feature hashing with signs after Weinberger et al., ICML 2009 (arXiv 0902.2206). An n-gram has a whole number,
    made of those of its characters, so that the n-grams of many texts are counted by sorting numbers. With a character
    that has none an n-gram counts as one that no text of the pool has.
    """

    def __init__(self, pool: Sequence[str], tell: Tell | None = None) -> None:
        """Learn the idf; `tell` is called with ("n-grams", texts done, their number) wherever there are many."""
        self._tell = tell
        pool = [pool[place * len(pool) // LEARNED] for place in range(LEARNED)] if len(pool) > LEARNED else pool
        letters = Counter[str]()
        for text in pool:
            letters.update(_spaced(text))
        commonest = sorted(letters, key=lambda letter: (-letters[letter], letter))[:LETTERS]
        self._letters = np.array([0, *map(ord, commonest)], dtype=np.uint32)
        self._numbers = np.zeros(0x110000, dtype=np.uint16)
        self._numbers[self._letters[1:]] = np.arange(1, len(self._letters))
        self._grams, held = self._held(pool)
        weights = np.log((1 + len(pool)) / held)
        self._unseen = float(np.log(1 + len(pool)))
        self._buckets, signs = _places(self._texts(self._grams))
        self._weights = weights * signs

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text: (N, DIM) float32."""
        found = np.zeros((len(texts), DIM), dtype=np.float32)
        for start, some in self._blocks(texts):
            found[start : start + len(some)] = self._some(some)
        return found

    def _some(self, texts: Sequence[str]) -> NDArray[np.float64]:
        pairs, others = self._pairs(texts)
        pairs, counts = np.unique(pairs, return_counts=True)
        grams, rows = pairs >> np.uint64(BLOCK_BITS), (pairs & np.uint64(BLOCK - 1)).astype(np.int64)
        places = np.minimum(np.searchsorted(self._grams, grams), max(len(self._grams) - 1, 0))
        known = self._grams[places] == grams if len(self._grams) else np.zeros(len(grams), dtype=bool)
        tf = 1 + np.log(counts)
        at = rows[known] * DIM + self._buckets[places[known]]
        sums = np.bincount(at, self._weights[places[known]] * tf[known], len(texts) * DIM)
        # What no text of the pool has: n-grams of its characters, and those with another.
        buckets, signs = _places([*self._texts(grams[~known]), *(gram for _, gram in others)])
        at = np.concatenate((rows[~known], np.array([row for row, _ in others], dtype=np.int64))) * DIM + buckets
        tf = np.concatenate((tf[~known], 1 + np.log(np.array(list(others.values()), dtype=np.float64))))
        sums = sums + np.bincount(at, signs * self._unseen * tf, len(texts) * DIM)
        vectors = sums.reshape(len(texts), DIM)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1))

    def _held(self, pool: Sequence[str]) -> tuple[Keys, NDArray[np.int64]]:
        """Return the n-grams of a pool of texts, rising, and how many texts have each: (G,) both."""
        found = [np.zeros(0, dtype=np.uint64)]
        for _, some in self._blocks(pool):
            pairs, _ = np.unique(self._pairs(some)[0], return_counts=True)  # without the counts it is slower
            found.append(pairs >> np.uint64(BLOCK_BITS))
        return np.unique(np.concatenate(found), return_counts=True)

    def _pairs(self, texts: Sequence[str]) -> tuple[Keys, Counter[tuple[int, str]]]:
        """Return the n-grams of up to BLOCK texts, and apart those that have no number.

        The first are (P,) the number of each n-gram and in the lower bits that of its text.
        """
        texts = [_spaced(text) for text in texts]
        joined = "".join(texts)
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        letters, sizes = self._numbers[codes].astype(np.uint64), [len(text) for text in texts]
        rows = np.repeat(np.arange(len(texts), dtype=np.uint64), sizes)
        left = np.repeat(np.cumsum(sizes, dtype=np.int64), sizes) - np.arange(len(codes))
        found, others, grams = list[Keys](), Counter[tuple[int, str]](), letters
        named = letters > 0
        for order in range(2, ORDERS[-1] + 1):
            places = np.flatnonzero(left >= order)
            grams = (grams[places] << np.uint64(LETTER_BITS)) | letters[places + (order - 1)]
            named = named[places] & (letters[places + (order - 1)] > 0)
            found.append(((grams << np.uint64(BLOCK_BITS)) | rows[places])[named])
            without = places[~named].tolist()
            others.update((int(rows[place]), joined[place : place + order]) for place in without)
            grams, named = _at(grams, places, len(codes)), _at(named, places, len(codes))
        return np.concatenate(found), others

    def _texts(self, grams: Keys) -> list[str]:
        """Return the texts of rising n-grams."""
        found, begin = list[str](), 0
        for order in ORDERS:
            end = int(np.searchsorted(grams, np.uint64(1 << order * LETTER_BITS)))
            shifts = np.arange(order - 1, -1, -1, dtype=np.uint64) * np.uint64(LETTER_BITS)
            numbers = (grams[begin:end, None] >> shifts) & np.uint64(2**LETTER_BITS - 1)
            text = self._letters[numbers].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
            found += [text[start : start + order] for start in range(0, len(text), order)]
            begin = end
        return found

    def _blocks(self, texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield BLOCK texts at a time with the number of the first, and tell how far it is where there are many."""
        for start in range(0, len(texts), BLOCK):
            yield start, texts[start : start + BLOCK]
            if self._tell and len(texts) > BLOCK:
                self._tell("n-grams", min(start + BLOCK, len(texts)), len(texts))


def _spaced(text: str) -> str:
    """Return a text with a space at both ends; runs of spaces count as one."""
    return f" {' '.join(text.split())} "


def _at(values: NDArray[Any], places: NDArray[np.int64], size: int) -> NDArray[Any]:
    """Return an array of zeros with values at some places."""
    found = np.zeros(size, dtype=values.dtype)
    found[places] = values
    return found


def _places(grams: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the bucket of each n-gram and its sign, so that collisions cancel out on average."""
    codes = np.array([zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in grams], dtype=np.int64)
    return (codes >> 1) % DIM, np.where(codes & 1, 1.0, -1.0)
