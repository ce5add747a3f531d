"""Vectors of texts from their character n-grams: no model, and the same numbers in every process."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIM = 512
"""Buckets that the n-grams are hashed into."""

BLOCK = 1_000
"""Texts whose vectors are made at once, in twice the precision."""

ORDERS = (2, 3, 4)
"""Lengths of the n-grams, in characters."""


class NgramVectors:
    """Hashed tf-idf over character n-grams; the idf is learned from a pool of texts.

    Feature hashing with signs after Weinberger et al., ICML 2009 (arXiv 0902.2206).
    """

    def __init__(self, pool: Sequence[str]) -> None:
        seen = Counter(gram for text in pool for gram in set(_ngrams(text)))
        self._unseen = float(np.log(1 + len(pool)))
        self._place = {gram: _place(gram, np.log((1 + len(pool)) / count)) for gram, count in sorted(seen.items())}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text: (N, DIM) float32."""
        found = np.zeros((len(texts), DIM), dtype=np.float32)
        for start in range(0, len(texts), BLOCK):
            found[start : start + BLOCK] = self._some(texts[start : start + BLOCK])
        return found

    def _some(self, texts: Sequence[str]) -> NDArray[np.float64]:
        vectors = np.zeros((len(texts), DIM))
        for row, text in zip(vectors, texts, strict=True):
            counts = Counter(_ngrams(text))
            places = [self._place.get(gram) or _place(gram, self._unseen) for gram in counts]
            if places:
                buckets, weights = zip(*places, strict=True)
                scale = 1 + np.log(np.fromiter(counts.values(), dtype=float))
                row[:] = np.bincount(buckets, weights=np.array(weights) * scale, minlength=DIM)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _ngrams(text: str) -> list[str]:
    """Return the n-grams of a text with a space at both ends; runs of spaces count as one."""
    text = f" {' '.join(text.split())} "
    return [text[start : start + order] for order in ORDERS for start in range(len(text) - order + 1)]


def _place(gram: str, weight: float) -> tuple[int, float]:
    """Return the bucket of an n-gram and its weight with a sign, so that collisions cancel out on average."""
    code = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
    return (code >> 1) % DIM, float(weight if code & 1 else -weight)
