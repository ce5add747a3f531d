"""Shortening by removal: words are removed in one fixed order until the rest fits.

The order never depends on tau: every tau removes the shortest prefix of it that fits the budget. So the texts are
nested, and a smaller tau never has more tokens, whatever the tokenizer does: if the longer text had fitted the smaller
budget, the smaller tau would have stopped there too.

Where the last step takes more than TOLERANCE too much, it is itself removed in parts, again in one fixed order: a long
sentence word by word, a long word (Chinese, JSON, one code fence) down to its sentences, clauses and characters.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence, Set

from pilocal.compress.borders import Part, pieces, structure
from pilocal.compress.compressor import Compressor, Tools
from pilocal.compress.outline import Outline, Unit
from pilocal.compress.protect import Place, fences, occurrences, protected_places, staying
from pilocal.task import Compression

STEPS = 400
"""Words are removed one at a time; in longer templates, several at once, so that about this many steps suffice."""


TOLERANCE = 0.1
"""How far below tau the realised ratio may lie before a step is removed in parts."""

FEW_TOKENS = 20
"""A template with fewer tokens keeps its sentences whole: TOLERANCE is less than two of its words."""

SENTENCE = 2 * TOLERANCE
"""A sentence with at most this share of the template's characters stays whole, to be readable ..."""

SHORT = 8
"""... unless it has at most this many words, such as an entry of a list."""

MOSTLY_CODE = 0.5
"""Code fences are cut between their lines where they hold more than this share of the template's characters."""

Score = Callable[[Sequence[Place]], Sequence[float]]
"""Returns how much each of some places in a template matters."""


class Cutter:
    """Takes words of a template apart, into parts in the order in which these are to go."""

    def __init__(self, outline: Outline, config: Compression, score: Score | None = None) -> None:
        """Without a `score`, where scores are equal, and in code, texts shrink from their end."""
        self._template = outline.template
        self._spans = outline.spans
        self._score = score or (lambda places: [0.0] * len(places))
        self._kept = protected_places(outline, config.protected)
        self._dropped = occurrences(outline.template, config.drop_first)
        self._code = fences(outline)
        is_code = sum(end - start for start, end in self._code) > MOSTLY_CODE * len(outline.template)
        self._to_cut = {word for unit in outline.units if _may_be_cut(unit, outline) for word in unit.words}
        self._closed = self._kept if is_code else [*self._kept, *self._code]

    def words(self, words: Set[int]) -> list[Part]:
        """Return words as parts; none if they are a sentence that stays whole."""
        if len(words) > 1 and not words & self._to_cut:
            return []
        return self._by_score([self._spans[word] for word in words])

    def split(self, part: Part) -> list[Part]:
        """Return the parts of a part; none if it cannot be cut."""
        if len(part) > 1:
            return []
        ((start, end),) = part
        text = self._template[start:end]
        closed = [(a - start, b - start) for a, b in self._closed if a < end and start < b]
        if found := structure(text, closed):
            parts = [tuple((a + start, b + start) for a, b in places) for places in found]
            return sorted(parts, key=lambda places: (self._rank(places), len(places) > 1, -places[0][0]))
        places = pieces(text, closed)
        return self._by_score([(a + start, b + start) for a, b in places]) if len(places) > 1 else []

    def _by_score(self, places: Sequence[Place]) -> list[Part]:
        """Return places as parts, the lowest score first, and among equals the last in the text."""
        is_code = _overlap(places[:1], self._code)
        scored = zip(places, [0.0] * len(places) if is_code else self._score(places), strict=True)
        order = sorted(scored, key=lambda pair: (self._rank((pair[0],)), pair[1], -pair[0][0]))
        return [(place,) for place, _ in order]

    def _rank(self, part: Part) -> tuple[bool, bool]:
        """Return what goes before any score: texts to drop go first, texts to keep last."""
        return _overlap(part, self._kept), not _overlap(part, self._dropped)


def _may_be_cut(unit: Unit, outline: Outline) -> bool:
    """Tell whether a unit is short, or too long to stay whole."""
    size = sum(len(outline.words[word]) for word in unit.words)
    return not unit.is_heading and (len(unit.words) <= SHORT or size > SENTENCE * len(outline.template))


def _overlap(places: Sequence[Place], others: Sequence[Place]) -> bool:
    return any(a < end and start < b for a, b in others for start, end in places)


def remove(
    outline: Outline,
    steps: Iterable[Set[int]],
    tau: float,
    count_tokens: Callable[[str], int],
    cutter: Cutter | None = None,
) -> str:
    """Return the longest text that fits `tau` of the template's tokens, removing `steps` one by one.

    `steps` are sets of word numbers in the order of removal; a word in none of them stays, whatever tau is. With a
    `cutter`, a step that would take TOLERANCE more than it must, or all that is left, is removed in parts; but not a
    sentence of a template of FEW_TOKENS.

    >>> remove(Outline("one two three four"), [{3}, {0}, {1}, {2}], 0.5, lambda text: len(text.split()))
    'two three'
    """
    if tau >= 1:
        return outline.template
    if tau <= 0:
        return ""
    whole = count_tokens(outline.template)
    budget, least = tau * whole, max(1, (tau - TOLERANCE) * whole - 1e-6)
    gone: set[int] = set()
    for step in steps:
        text = outline.text(gone | step)
        if count_tokens(text) <= budget:
            is_sentence = len(step) > 1 and whole < FEW_TOKENS
            if cutter is None or is_sentence or count_tokens(text) >= least:
                return text
            return max([text, *_in_parts(outline, gone, step, cutter, (least, budget), count_tokens)], key=count_tokens)
        gone |= step
    return outline.text(gone)


def _in_parts(
    outline: Outline,
    gone: Set[int],
    step: Set[int],
    cutter: Cutter,
    tokens: tuple[float, float],
    count_tokens: Callable[[str], int],
) -> list[str]:
    """Return what is left when a step is removed in parts, each time finer, until it has enough of the `tokens`.

    Every text fits, and differs from the one before only in that the last part that went is removed in parts itself.
    """
    least, budget = tokens
    cuts: list[Place] = []
    texts: list[str] = []
    parts = cutter.words(step)
    while parts and (not texts or count_tokens(texts[-1]) < least):
        for part in parts:
            text = outline.text(gone, [*cuts, *part])
            if count_tokens(text) <= budget:
                break
            cuts += part
        texts.append(text)
        parts = cutter.split(part)
    return texts


def lowest_first(outline: Outline, scores: Sequence[float], config: Compression) -> list[set[int]]:
    """Return the removals of single words: the lowest score first, and among equals the last in the text.

    Words that contain a text of `drop_first` go before all others; those that contain a text of `keep` or `stay` go
    last.
    """
    kept, dropped = outline.overlapping(config.protected), outline.overlapping(config.drop_first)
    order = sorted(range(len(scores)), key=lambda word: (word not in dropped, scores[word], -word))
    largest = max(1, len(order) // STEPS)
    steps = []
    for group in ([w for w in order if w not in kept], [w for w in order if w in kept]):
        steps += [set(group[start : start + largest]) for start in range(0, len(group), largest)]
    return steps


def may_go(steps: Iterable[Set[int]], outline: Outline, config: Compression) -> list[set[int]]:
    """Return removals without the words that stay whatever tau is."""
    stay = staying(outline, config)
    return [left for step in steps if (left := set(step) - stay)]


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

    @abstractmethod
    def part_scores(self, template: str, places: Sequence[Place]) -> Sequence[float]:
        """Return the score of each of some places in a template, which may lie inside words; raises PilocalError."""

    def compress(self, template: str, tau: float) -> str:
        """Return the template without its lowest-scoring words; raises what `scores` raises."""
        outline, steps, cutter = self._order(template)
        return remove(outline, steps, tau, self._count_tokens, cutter)

    def _ordered(self, template: str) -> tuple[Outline, list[set[int]], Cutter]:
        outline = Outline(template)
        steps = may_go(lowest_first(outline, self.scores(outline), self.config), outline, self.config)
        return outline, steps, Cutter(outline, self.config, functools.partial(self.part_scores, template))
