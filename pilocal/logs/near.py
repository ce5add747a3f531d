"""Texts that are nearly the same get the same number, in bounded memory: MinHash with locality-sensitive hashing.

Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

import zlib
from collections import Counter
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pilocal.task.text import key_of

HASHES, BANDS = 96, 16

ALIKE = 0.85
"""The share of their pieces that two texts have in common if they are nearly the same."""

LETTERS, WORDS = 5, 3
"""The pieces: so many letters in a row, or so many words of a long text."""

LONG = 400
"""Letters from which a text is long."""

MOST_PIECES = 512

SHORTEST = 12
"""Letters of the shortest text that is compared and not only looked up."""


class NearDuplicates:
    """Texts, known by the order in which they are added."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._factors = draw.integers(0, 1 << 63, (HASHES, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._parents: list[int] = []
        self._exact: dict[bytes, int] = {}
        self._buckets: dict[bytes, int] = {}
        self._signatures: dict[int, NDArray[np.uint32]] = {}
        self._near: list[tuple[int, int]] = []

    def add(self, text: str) -> None:
        """Add a text."""
        key = key_of(text)
        number = len(self._parents)
        first = self._exact.setdefault(blake2b(key.encode("utf-8", "replace"), digest_size=16).digest(), number)
        self._parents.append(first)
        if first == number and len(key) >= SHORTEST:
            self._compare(number, self._signature(key))

    def groups(self, largest: float = 0.1) -> list[int]:
        """Return the number of each text's group.

        Equal texts are of one group, and so are those that are nearly the same, unless it would hold more than a share
        of all of them: a chain of likenesses may link what is not alike.
        """
        sizes = Counter(map(self._root, range(len(self._parents))))
        limit = max(20, int(largest * len(self._parents)))
        for one, other in self._near:
            first, second = self._root(one), self._root(other)
            if first != second and sizes[first] + sizes[second] <= limit:
                self._parents[second] = first
                sizes[first] += sizes.pop(second)
        return [self._root(number) for number in range(len(self._parents))]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _compare(self, number: int, signature: NDArray[np.uint32]) -> None:
        """Note which text before this one is nearly the same."""
        self._signatures[number] = signature
        found = set()
        for band, part in enumerate(signature.reshape(BANDS, -1)):
            found.add(self._buckets.setdefault(bytes([band]) + part.tobytes(), number))
        for other in found - {number}:
            if np.mean(self._signatures[other] == signature) >= ALIKE:
                self._near.append((other, number))

    def _signature(self, key: str) -> NDArray[np.uint32]:
        """Return the smallest hash of the text's pieces by each of HASHES hash functions: (HASHES,) uint32."""
        parts, order = (key.split(), WORDS) if len(key) > LONG else (list(key), LETTERS)
        joined = (repr(parts[start : start + order]) for start in range(max(1, len(parts) - order + 1)))
        pieces = sorted({zlib.crc32(piece.encode("utf-8", "surrogatepass")) for piece in joined})[:MOST_PIECES]
        hashed = (np.array(pieces, dtype=np.uint64) * self._factors) >> np.uint64(32)  # multiplied modulo 2**64
        smallest: NDArray[np.uint32] = hashed.min(axis=1).astype(np.uint32)
        return smallest
