"""The compressor `surprisal`: drops the words that the base could have guessed from the text before them.

A word's surprisal is the sum over its tokens: minus the logarithm of the probability that the base gives to the whole
word. It is computed once, in one pass over the template, and orders the words for every tau. Pruning by
self-information comes from Selective Context (Li et al., EMNLP 2023); here the model that prunes is the one that reads.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from pilocal.compress.compressor import LanguageModel, Span, Tools
from pilocal.compress.outline import Outline
from pilocal.compress.protect import Place
from pilocal.compress.removal import WordRemoval
from pilocal.task import Compression


class Surprisal(WordRemoval):
    """Drops whole words, the most predictable first."""

    name: ClassVar[str] = "surprisal"

    def __init__(self, config: Compression, tools: Tools) -> None:
        super().__init__(config, tools)
        self._model: LanguageModel | None = None
        self._tokens = functools.cache(self._read)

    def scores(self, outline: Outline) -> Sequence[float]:
        """Return each word's surprisal; raises InputError when the template is longer than the base's context."""
        return word_surprisals(outline, self._tokens(outline.template))

    def part_scores(self, template: str, places: Sequence[Place]) -> Sequence[float]:
        """Return each place's surprisal; raises what `scores` raises."""
        return surprisals(template, places, self._tokens(template))

    def _read(self, template: str) -> Sequence[Span]:
        self._model = self._model or self.tools.load_model()
        return self._model.surprisal(template)

    def close(self) -> None:
        """Free the base."""
        if self._model:
            self._model.close()
        self._model = None


def word_surprisals(outline: Outline, spans: Sequence[Span]) -> list[float]:
    """Return each word's surprisal."""
    return surprisals(outline.template, outline.spans, spans)


def surprisals(template: str, places: Sequence[Place], spans: Sequence[Span]) -> list[float]:
    """Return each place's surprisal: the sum over the tokens that begin in it, ignoring spaces before a token."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    starts = [places[number][0] for number in order]
    sums = [0.0] * len(places)
    for start, end, surprisal in spans:
        token = template[start:end]
        if not token.strip():
            continue  # between words
        first = start + len(token) - len(token.lstrip())
        place = bisect_right(starts, first) - 1
        if place >= 0 and first < places[order[place]][1]:
            sums[order[place]] += surprisal
    return sums
