"""The compressor `surprisal`: drops the words that the base could have guessed from the text before them.

A word's surprisal is the sum over its tokens: minus the logarithm of the probability that the base gives to the whole
word. It is computed once, in one pass over the template, and orders the words for every tau. Pruning by
self-information comes from Selective Context (Li et al., EMNLP 2023); here the model that prunes is the one that reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from pilocal.compress.compressor import LanguageModel, Span, Tools
from pilocal.compress.outline import Outline
from pilocal.compress.removal import WordRemoval
from pilocal.task import Compression


class Surprisal(WordRemoval):
    """Drops whole words, the most predictable first."""

    name: ClassVar[str] = "surprisal"

    def __init__(self, config: Compression, tools: Tools) -> None:
        super().__init__(config, tools)
        self._model: LanguageModel | None = None

    def scores(self, outline: Outline) -> Sequence[float]:
        """Return each word's surprisal; raises InputError when the template is longer than the base's context."""
        self._model = self._model or self.tools.load_model()
        return word_surprisals(outline, self._model.surprisal(outline.template))

    def close(self) -> None:
        """Free the base."""
        if self._model:
            self._model.close()
        self._model = None


def word_surprisals(outline: Outline, spans: Sequence[Span]) -> list[float]:
    """Return each word's surprisal: the sum over the tokens that begin in it, ignoring spaces before a token."""
    starts = [start for start, _ in outline.spans]
    sums = [0.0] * len(starts)
    for start, end, surprisal in spans:
        token = outline.template[start:end]
        if not token.strip():
            continue  # between words
        first = start + len(token) - len(token.lstrip())
        word = bisect_right(starts, first) - 1
        if word >= 0 and first < outline.spans[word][1]:
            sums[word] += surprisal
    return sums
