"""The compressor `rules`: drops whole rules, sentences and words of a template in one fixed order; needs no model.

The order of removal:

1. units that contain a text of `drop_first`
2. decoration (lines without a letter or digit)
3. courtesies and asides ("please", "note that", "for example") that state no rule and name nothing specific
4. the turns of a worked dialogue after the first, from the end; the opening of the real dialogue stays
5. sentences that state no rule and name nothing specific, from the end
6. the entries of bulleted lists from the end, all lists at the same pace
7. sentences, numbered items and code that name something specific, from the end
8. sentences that state a rule, from the end
9. the first sentence and the lead-in to the query, word by word, stop words first
10. units that contain a text of `keep` or `stay`, word by word, the text of `keep` itself at the very end

A unit is a sentence, a list item, a code fence or a dialogue turn. A heading goes together with the last unit under it,
and a list item never goes before its contents. A blank line goes when it separates nothing any more; most tokenizers
give it no token of its own. A unit that is too large to go as a whole shrinks from its end, see `removal.py`.
"""

from __future__ import annotations

import functools
import re
from typing import ClassVar

from pilocal.compress.compressor import Compressor, Tools
from pilocal.compress.outline import Outline, Unit
from pilocal.compress.removal import Cutter, may_go, remove
from pilocal.task import Compression

STOP_WORD = re.compile(
    r"(a|an|the|this|that|these|those|there|here|its?|is|are|was|were|be|been|being|am|do|does|did|has|have|had|will"
    r"|would|can|could|should|may|might|shall|of|to|in|on|at|by|for|from|with|as|into|and|or|but|so|if|then|than|which"
    r"|who|whom|whose|what|when|where|how|i|you|he|she|we|they|your|our|their|my|me|us|them|very|just|also|really|quite"
    r"|simply|please)[.,;:!?]?\s*",
    re.IGNORECASE,
)
"""Words that go first when a sentence is removed word by word."""

Key = tuple[float, ...]
"""Sorts the removals; a key that begins with another key comes right after it."""

DROPPED_FIRST, CORE, KEPT = 1, 9, 10
"""Tiers of the order above; `_rank` gives those in between."""

PIECES = 20
"""A step removes at most one in this many of the template's words, so that tau is met within a few percent ..."""

SMALLEST_PIECE = 16
"""... but a unit with at most this many words is removed whole."""


class Rules(Compressor):
    """Drops whole rules, sentences and finally words, by declared priority."""

    name: ClassVar[str] = "rules"

    def __init__(self, config: Compression, tools: Tools) -> None:
        self.config = config
        self.count_tokens = functools.cache(tools.count_tokens)

    def compress(self, template: str, tau: float) -> str:
        """Return the longest text that fits `tau`, removing words in the fixed order."""
        outline = Outline(template)
        steps = may_go(removals(outline, self.config), outline, self.config)
        return remove(outline, steps, tau, self.count_tokens, Cutter(outline, self.config))


def removals(outline: Outline, config: Compression) -> list[set[int]]:
    """Return sets of word numbers in the order of removal; together they are every word of the template."""
    kept = outline.overlapping(config.protected)
    dropped = outline.overlapping(config.drop_first)
    largest = max(SMALLEST_PIECE, len(outline.words) // PIECES)
    below: dict[int, Key] = {}
    keyed: list[tuple[Key, bool, set[int]]] = []
    for unit in reversed(outline.units):  # a unit's contents come after it, so in reverse they are seen first
        joins = False
        if kept.intersection(unit.words):
            steps = _word_by_word(KEPT, unit, outline, kept)
        elif dropped.intersection(unit.words):
            steps = _in_pieces((DROPPED_FIRST, 0, -unit.number), unit, largest)
        elif unit.is_core:
            steps = _word_by_word(CORE, unit, outline, kept)
        elif unit.is_heading and unit.number in below:
            joins, steps = True, [((*below[unit.number], 0), set(unit.words))]
        else:
            steps = _in_pieces(max(_rank(unit), below.get(unit.number, ())), unit, largest)
        keyed += [(key, joins, words) for key, words in steps]
        if unit.owner is not None:
            below[unit.owner] = max(below.get(unit.owner, ()), *(key for key, _ in steps))
    order: list[set[int]] = []
    for _, joins, words in sorted(keyed, key=lambda step: step[0]):
        if joins and order:
            order[-1] |= words
        else:
            order.append(words)
    return order


def _in_pieces(key: Key, unit: Unit, largest: int) -> list[tuple[Key, set[int]]]:
    """Return the removals of a unit, from its end, at most `largest` words at a time."""
    starts = range(0, len(unit.words), largest)
    return [((*key, -start), set(unit.words[start : start + largest])) for start in starts]


def _word_by_word(tier: int, unit: Unit, outline: Outline, kept: set[int]) -> list[tuple[Key, set[int]]]:
    """Return the removals of single words: stop words first, words with a text to keep last, each from the end."""
    stops = {word for word in unit.words if STOP_WORD.fullmatch(outline.words[word])}
    return [((tier, word in kept, word not in stops, -word), {word}) for word in unit.words]


def _rank(unit: Unit) -> Key:
    """Return a unit's position in the order of removal: its tier (see the module), then its place in the tier."""
    if unit.is_bullet:
        return 6, -unit.place_in_list, -unit.number
    tiers = (
        (unit.is_decoration, 2),
        (unit.is_aside, 3),
        (unit.is_turn, 4),
        (unit.states_rule, 8),
        (unit.names_something, 7),
    )
    return next((tier for holds, tier in tiers if holds), 5), 0, -unit.number
