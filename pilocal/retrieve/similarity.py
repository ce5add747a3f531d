"""How similar texts are: by BLEU, exactly or within a shortlist, or by the cosine of embeddings, through an index."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, takewhile
from pathlib import Path
from typing import Any, Protocol

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


EXACT_PAIRS = 12_000**2
"""Up to so many pairs of a text and a text of the bank, each different, BLEU finds the best of all."""

SHORTLIST = 64
"""The least number of texts in a shortlist, and NEAR_EACH for each shot, where there are more pairs."""
NEAR_EACH = 10

LOOKED_UP = 128
"""Places of texts that are looked up for each text in a shortlist."""

Scores = Mapping[int, float] | NDArray[np.floating[Any]]
"""The score of each text by its number."""


class Vectors(Protocol):
    """Turns texts into vectors of length 1."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32."""


class Similarity(Protocol):
    """Ranks the texts of a bank by their similarity to others."""

    def rankings(self, texts: Sequence[str]) -> Iterator[Iterable[int]]:
        """Yield for each text the bank's numbers, most similar first; numbers may repeat, ties are ordered by number.

        Of numbers with the same text and the same question only the first is there for certain. Each ranking can be
        read more than once, and is computed only as far as it is read.
        """


class Ranking:
    """Numbers in an order, which are computed once, as far as they are read."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._coming = numbers
        self._read: list[int] = []

    def __iter__(self) -> Iterator[int]:
        place = 0
        while True:
            if place == len(self._read):
                number = next(self._coming, None)
                if number is None:
                    return
                self._read.append(number)
            yield self._read[place]
            place += 1


class _Distinct:
    """The distinct texts of a bank, and where each stands: at the first number for each question."""

    def __init__(self, bank: Sequence[str], questions: Sequence[Hashable]) -> None:
        held: dict[str, dict[Hashable, int]] = {}
        for number, (text, asked) in enumerate(zip(bank, questions, strict=True)):
            held.setdefault(text, {}).setdefault(asked, number)
        self.count = len(bank)
        self.texts = list(held)
        self._places = [list(numbers.values()) for numbers in held.values()]

    def places(self, ranked: Iterable[int], scores: Scores) -> Iterator[int]:
        """Yield the numbers of distinct texts, given in the order of their falling scores; ties go by number."""
        for _, texts in groupby(ranked, key=lambda text: scores[text]):
            held = [self._places[text] for text in texts]
            yield from held[0] if len(held) == 1 else sorted(chain.from_iterable(held))


class ByBleu:
    """The texts of the bank are hypotheses, the given text is the reference.

    Up to EXACT_PAIRS nothing is approximated. Beyond, the best are found in a shortlist of those texts that share the
    longest and rarest n-grams of words, and scored exactly; if it does not suffice, all texts are.
    """

    def __init__(self, bank: Sequence[str], questions: Sequence[Hashable], count: int, k: int) -> None:
        """Take the bank's texts with their questions, how many texts will be ranked, and how many shots are needed."""
        self._distinct = _Distinct(bank, questions)
        self._bleu = BleuBank(self._distinct.texts)
        self.is_exact = count * len(self._distinct.texts) <= EXACT_PAIRS
        self.shortlist = max(SHORTLIST, NEAR_EACH * (k + 1))
        """How many texts a shortlist has."""

    def rankings(self, texts: Sequence[str]) -> Iterator[Ranking]:
        """See Similarity."""
        for text in texts:
            yield Ranking(self.exactly(text) if self.is_exact else self._nearest(text))

    def exactly(self, text: str) -> Iterator[int]:
        """Yield the bank's numbers, nothing approximated, as in `Similarity.rankings`."""
        scores = self._bleu.scores(text)
        alike = takewhile(lambda number: scores[number] > 0, falling(scores))
        yield from self._distinct.places(alike, scores)
        yield from range(self._distinct.count)

    def _nearest(self, text: str) -> Iterator[int]:
        near = self._bleu.shortlist(text, self.shortlist, LOOKED_UP * self.shortlist)
        order = np.argsort(-near.scores, kind="stable")
        scores = dict(zip(near.numbers[order].tolist(), near.scores[order].tolist(), strict=True))
        yield from self._distinct.places(scores, scores)
        yield from range(self._distinct.count) if near.whole else self.exactly(text)


class ByEmbedding:
    """Neighbours in an hnswlib index, ordered by their true cosine; if they do not suffice, all texts, exactly."""

    def __init__(self, bank: Sequence[str], questions: Sequence[Hashable], make: Vectors, path: Path, k: int) -> None:
        """Open the index at `path`, or build it; `k` shots will be needed."""
        # Each text once: hnswlib's graph falls apart when many vectors are equal.
        self._distinct = _Distinct(bank, questions)
        self._make = make
        self._vectors = make(self._distinct.texts)
        self._near = max(NEIGHBOURS, 2 * (k + 1))
        self._index: NeighbourIndex = open_index(self._vectors, path, self._near)

    def rankings(self, texts: Sequence[str]) -> Iterator[Ranking]:
        """See Similarity."""
        vectors = self._vectors if list(texts) == self._distinct.texts else self._make(texts)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            for vector, near in zip(block, self._index.neighbours(block, self._near), strict=True):
                yield Ranking(self._nearest(vector, near))

    def _nearest(self, vector: NDArray[np.float32], near: NDArray[np.int64]) -> Iterator[int]:
        cosines = dict(
            zip(near.tolist(), np.round(self._vectors[near] @ vector, COSINE_DECIMALS).tolist(), strict=True)
        )
        yield from self._distinct.places(sorted(cosines, key=lambda number: (-cosines[number], number)), cosines)
        every = np.round(self._vectors @ vector, COSINE_DECIMALS)
        yield from self._distinct.places(falling(every), every)
