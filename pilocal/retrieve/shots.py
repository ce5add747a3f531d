"""The shots of every example: chosen by its own text in training, by the query alone if the answer is unknown.

The choice by BLEU is PromptIntern's (EMNLP Findings 2024): the k examples whose labels are most similar. Of many
examples they are found in a shortlist; how good that is, is measured against all and kept with the choice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from pilocal.retrieve.bank import Question, check_bank, choose_bank, question
from pilocal.retrieve.bleu import BleuBank
from pilocal.retrieve.embeddings import EmbeddingVectors, model_hash
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.retrieve.ranking import falling
from pilocal.retrieve.similarity import COSINE_DECIMALS, ByBleu, ByEmbedding, Similarity, Vectors
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Example, Retrieval

PROGRESS_EVERY = 100
"""Distinct texts between two calls of `progress`."""

LARGE, AT_ONCE = 12_000, 64
"""Of a bank with more examples, so many queries are compared at once: each reads all of its vectors."""

SAMPLE = 100
"""Examples whose shots from a shortlist are compared with the best of all."""


class ShotPicker:
    """Chooses shots for every example of a task from its training examples; all choices are deterministic.

    A shot never asks the same query as its example (except for spaces and capitals), because it would give the answer
    away. No two shots of one example ask the same; the same answer to another query is a good shot. Shots come least
    similar first, so that the most similar one is next to the query: the last k of k + 1 shots are the k shots. Only
    examples of the bank, `config.pool` of the training examples, are shots.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        config: Retrieval,
        folder: Path | None,
        *,
        k: int,
        seed: int = 0,
        where: object = "train",
        models: Path = Path(),
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Rank the `k` best shots of every training example, or read the ranking from `folder` (RUN/index).

        Without a folder nothing is ranked, and only shots for queries are available. `seed` draws the bank; `where`
        names the training file in errors; an embedding model's directory is relative to `models`; `progress` is called
        with what is done, how much of it and how much there is. Raises InputError when an example would find fewer than
        `k` shots, or when the embedding model cannot be loaded.
        """
        check_bank(examples, config, k, seed, where)
        self._examples = tuple(examples)
        self._config = config
        self._models = models
        self._asked = [question(example.query, example.history) for example in self._examples]
        self._bank = choose_bank(len(self._examples), config.pool, seed)
        self._most = k
        self._tell = progress or _silent
        self.shortlist: dict[str, float] = {}
        """How the shots from a shortlist compare with the best of all; empty where the choice is exact."""
        self._ranking = [] if folder is None else self._ranked(folder)

    def for_training(self, i: int, k: int) -> tuple[int, ...]:
        """Return the k training examples most similar to example i by `config.similarity`, least similar first.

        With BLEU, the answer of i is the reference and the other is the hypothesis; ties are ordered by number.
        """
        self._check(k)
        return tuple(reversed(self._ranking[i][:k])) if k else ()

    def for_query(self, query: str, k: int, history: Sequence[tuple[str, str]] = ()) -> tuple[int, ...]:
        """Return the k training examples whose queries are most similar to `query`, least similar first.

        `history` holds the earlier turns of a multi-turn record. See `for_queries`.
        """
        return self.for_queries([(query, history)], k)[0]

    def for_queries(self, asked: Sequence[tuple[str, Sequence[tuple[str, str]]]], k: int) -> list[tuple[int, ...]]:
        """Return for each (query, earlier turns) the k training examples with the most similar queries.

        For validation and test, where the answer must not be used. Queries are compared exactly, by the cosine of
        embeddings or of character n-grams; least similar first, ties ordered by number.
        """
        self._check(k)
        if not k or not asked:
            return [() for _ in asked]
        make, bank = self._query_vectors
        found, vectors = list[tuple[int, ...]](), make([query for query, _ in asked])
        size = AT_ONCE if len(bank) > LARGE else 1  # each alone otherwise, which rounds as one served query does
        for start in range(0, len(asked), size):
            some = vectors[start : start + size]
            cosines = (bank @ some[0])[None] if len(some) == 1 else some @ bank.T
            for row, (query, history) in zip(cosines, asked[start : start + size], strict=True):
                places = falling(np.round(row, COSINE_DECIMALS))
                found.append(tuple(reversed(self._first(k, places, question(query, history)))))
            if size > 1:
                self._tell("shots of queries", len(found), len(asked))
        return found

    def _first(self, k: int, places: Iterable[int], own: Question) -> list[int]:
        """Return the first k examples, by their place in the bank, that ask neither `own` nor an earlier question."""
        found: list[int] = []
        seen = {own}
        for place in places:
            if len(found) == k:
                break
            number = self._bank[place]
            if self._asked[number] not in seen:
                seen.add(self._asked[number])
                found.append(number)
        return found

    def _check(self, k: int) -> None:
        if not 0 <= k <= self._most:
            raise ValueError(f"k is {k}, but shots were ranked for at most {self._most}")

    @functools.cached_property
    def _query_vectors(self) -> tuple[Vectors, NDArray[np.float32]]:
        queries = [self._examples[number].query for number in self._bank]
        make = self._embeddings if self._config.similarity == "embedding" else NgramVectors(queries, self._tell)
        return make, make(queries)

    @functools.cached_property
    def _embeddings(self) -> Vectors:
        return EmbeddingVectors(self._config.embedding_model, self._models)

    def _ranked(self, folder: Path) -> list[list[int]]:
        path = folder / "shots.json"
        records = [(example.history, example.query, example.answer) for example in self._examples]
        embeds = self._config.similarity == "embedding"
        model = model_hash(self._config.embedding_model, self._models) if embeds else ""
        key = fingerprint(records, dataclasses.asdict(self._config), model, self._bank, self._most)
        try:
            cached = read_json(path)
            if cached["key"] == key and cached["shots_sha256"] == fingerprint(cached["shots"]):
                ranking: list[list[int]] = cached["shots"]
                self.shortlist = dict(cached.get("shortlist", {}))
                return ranking
        except MISSHAPEN:
            pass
        ranking = self._rank_all(folder)
        how = {"shortlist": self.shortlist} if self.shortlist else {}
        write_json(path, {"key": key, "shots_sha256": fingerprint(ranking), **how, "shots": ranking})
        return ranking

    def _rank_all(self, folder: Path) -> list[list[int]]:
        """Return each example's best shots, most similar first; examples with the same text are ranked together."""
        if not self._most:
            return [[] for _ in self._examples]
        texts = [getattr(example, self._config.over) for example in self._examples]
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            holders[text].append(number)
        similarity = self._similarity(texts, len(holders), folder)
        ranking: list[list[int]] = [[] for _ in texts]
        done = 0
        for turn, (text, places) in enumerate(zip(holders, similarity.rankings(list(holders)), strict=True), 1):
            for i, chosen in self._shots_of(holders[text], places):
                ranking[i] = chosen
            done += len(holders[text])
            if turn % PROGRESS_EVERY == 0 or turn == len(holders):
                self._tell("shots", done, len(texts))
        self.shortlist = self._compared(similarity, texts, ranking)
        return ranking

    def _shots_of(self, numbers: Sequence[int], places: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield examples with the same ranking of places, each with its shots; one question is looked for once."""
        known: dict[Question, list[int]] = {}
        for i in numbers:
            own = self._asked[i]
            if own not in known:
                known[own] = self._first(self._most, places, own)
            yield i, known[own]

    def _similarity(self, texts: Sequence[str], count: int, folder: Path) -> Similarity:
        """Return what ranks the bank; `texts` are those of all examples, of which so many are different."""
        bank, asked = [texts[number] for number in self._bank], [self._asked[number] for number in self._bank]
        if self._config.similarity == "bleu":
            return ByBleu(bank, asked, count, self._most)
        return ByEmbedding(bank, asked, self._embeddings, folder / f"{self._config.over}.hnsw", self._most)

    def _compared(self, similarity: Similarity, texts: Sequence[str], ranking: list[list[int]]) -> dict[str, float]:
        """Return how some examples' shots compare with the best of all by BLEU; nothing where they are the best.

        The recall is the share of shots that are as good as the worst of the best.
        """
        if not isinstance(similarity, ByBleu) or similarity.is_exact:
            return {}
        recalls, found, best = list[float](), list[float](), list[float]()
        for i in np.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).astype(int).tolist():
            exact = self._first(self._most, similarity.exactly(texts[i]), self._asked[i])
            scores = BleuBank([texts[number] for number in (*ranking[i], *exact)]).scores(texts[i]).tolist()
            own, others = scores[: len(ranking[i])], scores[len(ranking[i]) :]
            recalls.append(mean(score >= min(others) for score in own))
            found.append(mean(own))
            best.append(mean(others))
        measured = {"recall": mean(recalls), "mean_bleu": mean(found), "mean_bleu_exact": mean(best)}
        known: dict[str, float] = {"texts": similarity.shortlist, "sample": len(recalls)}
        return known | {name: round(value, 6) for name, value in measured.items()}


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody how far it is."""
