"""The shots of every example: by BLEU between answers in training, by the query alone where the answer is unknown.

The choice for training is PromptIntern's (EMNLP Findings 2024): the k examples whose labels are most similar by BLEU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.retrieve.bleu import PairwiseBleu
from pilocal.retrieve.embeddings import EmbeddingVectors
from pilocal.retrieve.index import exact_neighbours, open_index
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.rundir import fingerprint, write_json
from pilocal.task import Example, Retrieval

PROGRESS_EVERY = 100
"""Examples between two calls of `progress`."""


Question = tuple[tuple[tuple[str, str], ...], str]
"""What makes two records the same question: the earlier turns, and the query but for spaces and capitals."""


class Vectors(Protocol):
    """Turns texts into vectors of length 1."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32."""


def check_pool(pool_size: int, k: int, where: object) -> None:
    """Raise InputError unless a pool of this many examples leaves k shots for each of its own examples."""
    if k > max(pool_size - 1, 0):
        fix = f"add examples, or use at most {max(pool_size - 1, 0)} shots"
        what = f"{k} shots need at least {k + 1} training examples with different queries"
        raise InputError(where, what, got=pool_size, fix=fix)


class ShotPicker:
    """Chooses shots for every example of a task from its training examples; all choices are deterministic.

    A shot never asks the same query as the example it is placed before (but for spaces and capitals), for it would give
    the answer away, and no two shots of one example ask the same; the same answer to another query is a fine shot.
    Shots come least similar first, so that the most similar one stands next to the query: the last of k + 1 shots are
    the k shots.
    """

    def __init__(
        self,
        pool: Sequence[Example],
        config: Retrieval,
        folder: Path,
        *,
        k: int,
        where: object = "train",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Rank the `k` best shots of every example of the pool, or read the ranking from `folder` (RUN/index).

        `where` names the pool in errors; `progress` is told ("shots", examples done, of how many). Raises InputError
        when an example would find fewer than `k` shots, or when the embedding model cannot be loaded.
        """
        self._pool = tuple(pool)
        self._config = config
        self._asked = [_question(example.query, example.history) for example in self._pool]
        check_pool(len(set(self._asked)), k, where)
        self._most = k
        self._ranking = self._ranked(folder, progress)

    def for_training(self, i: int, k: int) -> tuple[int, ...]:
        """Return the k training examples whose answers are most similar (BLEU) to example i's, least similar first.

        The answer of i is the reference, the other the hypothesis; ties go by number.
        """
        self._check(k)
        return tuple(reversed(self._ranking[i][:k])) if k else ()

    def for_query(self, query: str, k: int, history: Sequence[tuple[str, str]] = ()) -> tuple[int, ...]:
        """Return the k training examples whose queries are most similar (cosine) to `query`, least similar first.

        For validation and test, where the answer must not be looked at. `history` holds the earlier turns of a
        multi-turn record. Ties go by number.
        """
        self._check(k)
        if not k:
            return ()
        make, vectors = self._query_vectors
        ranked = exact_neighbours(vectors, make([query]), len(self._pool))[0]
        return tuple(reversed(self._first(k, ranked.tolist(), _question(query, history))))

    def _first(self, k: int, ranked: Iterable[int], own: Question) -> list[int]:
        """Return the first k of `ranked` that ask something else than `own` and than one another."""
        found: list[int] = []
        seen = {own}
        for number in ranked:
            if len(found) == k:
                break
            if self._asked[number] not in seen:
                seen.add(self._asked[number])
                found.append(number)
        return found

    def _check(self, k: int) -> None:
        if not 0 <= k <= self._most:
            raise ValueError(f"k is {k}, but shots were ranked for at most {self._most}")

    @functools.cached_property
    def _query_vectors(self) -> tuple[Vectors, NDArray[np.float32]]:
        queries = [example.query for example in self._pool]
        make = self._vectors(queries)
        return make, make(queries)

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        return NgramVectors(texts) if self._config.vectors == "ngrams" else self._embeddings

    @functools.cached_property
    def _embeddings(self) -> Vectors:
        return EmbeddingVectors(self._config.embedding_model)

    def _ranked(self, folder: Path, progress: Callable[[str, int, int], None] | None) -> list[list[int]]:
        path = folder / "shots.json"
        records = [(example.query, example.answer) for example in self._pool]
        key = fingerprint(records, dataclasses.asdict(self._config), self._most)
        try:
            cached = json.loads(path.read_text(encoding="utf-8"))
            if cached["key"] == key and cached["shots_sha256"] == fingerprint(cached["shots"]):
                ranking: list[list[int]] = cached["shots"]
                return ranking
        except (OSError, ValueError, KeyError, TypeError):
            pass
        ranking = self._rank_all(folder, progress)
        write_json(path, {"key": key, "shots_sha256": fingerprint(ranking), "shots": ranking})
        return ranking

    def _rank_all(self, folder: Path, progress: Callable[[str, int, int], None] | None) -> list[list[int]]:
        """Return each example's best shots, most similar first: the index's shortlist of answers, ranked by BLEU."""
        if not self._most:
            return [[] for _ in self._pool]
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for number, example in enumerate(self._pool):
            holders[example.answer].append(number)
        # Each answer once: hnswlib's graph falls apart when many vectors are equal.
        answers = list(holders)
        vectors = self._vectors(answers)(answers)
        shortlist = max(self._config.shortlist, self._most + 1)
        index = open_index(vectors, folder / "answers.hnsw", shortlist)
        bleu = PairwiseBleu(answers)

        def ranked(own: int, others: Iterable[int]) -> list[int]:
            scored = [(-bleu.score(other, own), number) for other in others for number in holders[answers[other]]]
            return [number for _, number in sorted(scored)]

        ranking: list[list[int]] = [[] for _ in self._pool]
        done = 0
        for start in range(0, len(answers), PROGRESS_EVERY):
            near = index.neighbours(vectors[start : start + PROGRESS_EVERY], shortlist)
            for own, others in enumerate(near.tolist(), start):
                candidates = ranked(own, others)
                for i in holders[answers[own]]:
                    ranking[i] = self._first(self._most, candidates, self._asked[i])
                    if len(ranking[i]) < self._most:  # the shortlist is all one question: look at every answer
                        ranking[i] = self._first(self._most, ranked(own, range(len(answers))), self._asked[i])
                    done += 1
            if progress is not None:
                progress("shots", done, len(self._pool))
        return ranking


def _question(query: str, history: Sequence[tuple[str, str]]) -> Question:
    return tuple(history), " ".join(query.split()).casefold()
