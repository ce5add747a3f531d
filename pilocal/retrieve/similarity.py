"""How similar texts are: by BLEU, exactly, or by the cosine of embeddings, through an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.retrieve.bleu import BleuBank
from pilocal.retrieve.index import NeighbourIndex, open_index
from pilocal.retrieve.ranking import falling

COSINE_DECIMALS = 6
"""Decimals that cosines are rounded to, so that equal texts are equally near."""

BLOCK = 100
"""Texts looked up in the index at once."""

NEIGHBOURS = 50
"""The least number of neighbours to search: shots must ask different questions, so k may not be enough."""


class Vectors(Protocol):
    """Turns texts into vectors of length 1."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32."""


class Similarity(Protocol):
    """Ranks the texts of a bank by their similarity to others."""

    def rankings(self, texts: Sequence[str]) -> Iterator[Iterable[int]]:
        """Yield for each text the bank's numbers, most similar first; numbers may repeat, ties are ordered by number.

        Each ranking can be read more than once, and is computed only as far as it is read.
        """


@dataclass(frozen=True, slots=True)
class _Falling:
    scores: NDArray[np.float64]

    def __iter__(self) -> Iterator[int]:
        return falling(self.scores)


class _Distinct:
    """Distinct texts, and for each text of a bank the number of its equal."""

    def __init__(self, texts: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self.of_N = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
        self.texts = list(numbers)


class ByBleu:
    """The texts of the bank are hypotheses, the given text is the reference; nothing is approximated."""

    def __init__(self, bank: Sequence[str]) -> None:
        self._distinct = _Distinct(bank)
        self._bleu = BleuBank(self._distinct.texts)

    def rankings(self, texts: Sequence[str]) -> Iterator[Iterable[int]]:
        """See Similarity."""
        for text in texts:
            yield _Falling(self._bleu.scores(text)[self._distinct.of_N])


class ByEmbedding:
    """Neighbours in an hnswlib index, ordered by their true cosine; if they do not suffice, all texts, exactly."""

    def __init__(self, bank: Sequence[str], make: Vectors, path: Path, k: int) -> None:
        """Open the index at `path`, or build it; `k` shots will be needed."""
        # Each text once: hnswlib's graph falls apart when many vectors are equal.
        self._distinct = _Distinct(bank)
        self._make = make
        self._vectors = make(self._distinct.texts)
        self._near = max(NEIGHBOURS, 2 * (k + 1))
        self._index: NeighbourIndex = open_index(self._vectors, path, self._near)

    def rankings(self, texts: Sequence[str]) -> Iterator[Iterable[int]]:
        """See Similarity."""
        vectors = self._vectors if list(texts) == self._distinct.texts else self._make(texts)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            for vector, near in zip(block, self._index.neighbours(block, self._near), strict=True):
                yield _NearFirst(self._vectors, self._distinct.of_N, vector, near)


@dataclass(frozen=True, slots=True)
class _NearFirst:
    vectors: NDArray[np.float32]
    distinct_N: NDArray[np.int64]
    vector: NDArray[np.float32]
    near: NDArray[np.int64]

    def __iter__(self) -> Iterator[int]:
        return chain(self._nearest(), self._all())

    def _nearest(self) -> Iterator[int]:
        cosines = np.full(len(self.vectors), -np.inf)
        cosines[self.near] = np.round(self.vectors[self.near] @ self.vector, COSINE_DECIMALS)
        held = cosines[self.distinct_N]
        found = np.flatnonzero(held > -np.inf)
        yield from found[np.argsort(-held[found], kind="stable")].tolist()

    def _all(self) -> Iterator[int]:
        yield from falling(np.round(self.vectors @ self.vector, COSINE_DECIMALS)[self.distinct_N])
