"""Shortening by removal: words are removed in one fixed order until the rest fits.

The order never depends on tau: every tau removes the shortest prefix of it that fits the budget. So the texts are
nested, and a smaller tau never has more tokens, whatever the tokenizer does: if the longer text had fitted the smaller
budget, the smaller tau would have stopped there too.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence, Set

from pilocal.compress.compressor import Compressor, Tools
from pilocal.compress.outline import Outline
from pilocal.task import Compression

STEPS = 400
"""Words are removed one at a time; in longer templates, several at once, so that about this many steps suffice."""


def remove(outline: Outline, steps: Iterable[Set[int]], tau: float, count_tokens: Callable[[str], int]) -> str:
    """Return the longest text that fits `tau` of the template's tokens, removing `steps` one by one.

    `steps` are sets of word numbers in the order of removal.

    >>> remove(Outline("one two three four"), [{3}, {0}, {1}, {2}], 0.5, lambda text: len(text.split()))
    'two three'
    """
    if tau >= 1:
        return outline.template
    if tau <= 0:
        return ""
    budget = tau * count_tokens(outline.template)
    gone: set[int] = set()
    for step in steps:
        gone |= step
        text = outline.text(gone)
        if count_tokens(text) <= budget:
            return text
    return ""


def lowest_first(outline: Outline, scores: Sequence[float], config: Compression) -> list[set[int]]:
    """Return the removals of single words: the lowest score first, and among equals the last in the text.

    Words that contain a text of `drop_first` go before all others; those that contain a text of `keep` go last.
    """
    kept, dropped = outline.overlapping(config.keep), outline.overlapping(config.drop_first)
    order = sorted(range(len(scores)), key=lambda word: (word not in dropped, scores[word], -word))
    largest = max(1, len(order) // STEPS)
    steps = []
    for group in ([w for w in order if w not in kept], [w for w in order if w in kept]):
        steps += [set(group[start : start + largest]) for start in range(0, len(group), largest)]
    return steps


class WordRemoval(Compressor):
    """A compressor that scores the words of a template once and drops the lowest first."""

    def __init__(self, config: Compression, tools: Tools) -> None:
        self.config = config
        self.tools = tools
        self._count_tokens = functools.cache(tools.count_tokens)
        self._order = functools.cache(self._ordered)

    @abstractmethod
    def scores(self, outline: Outline) -> Sequence[float]:
        """Return each word's score; raises PilocalError."""

    def compress(self, template: str, tau: float) -> str:
        """Return the template without its lowest-scoring words; raises what `scores` raises."""
        outline, steps = self._order(template)
        return remove(outline, steps, tau, self._count_tokens)

    def _ordered(self, template: str) -> tuple[Outline, list[set[int]]]:
        outline = Outline(template)
        return outline, lowest_first(outline, self.scores(outline), self.config)
