"""Texts cut into the units that a prompt is edited in: lines, and the sentences of long lines."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

ENDS = re.compile(r"\n+|(?<=[.!?])[ \t]+|(?<=[\u3002\uff01\uff1f])")
"""Where a unit ends: at the end of a line or of a sentence."""

CLAUSES = re.compile(r"(?<=[,;:])\s+")

SHARE = 0.95
"""The share of rows that have what is called recurring."""

LONG_SENTENCE = 40
"""Words of a sentence that is cut at its clauses, too."""

WORD = re.compile(r"\w[\w'\u2019-]*")


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a text."""

    key: str
    """Its words, whatever the white space."""
    start: int
    """Where it begins in the text."""
    end: int


@lru_cache(maxsize=4096)
def units_of(text: str) -> tuple[Unit, ...]:
    r"""Return the units of a text, none of which is blank.

    >>> [unit.key for unit in units_of("Answer briefly. Be kind.\n\n- no\n")]
    ['Answer briefly.', 'Be kind.', '- no']
    """
    found: list[Unit] = []
    for start, end in _spans(ENDS, text, 0, len(text)):
        if len(text[start:end].split()) > LONG_SENTENCE:
            found += [_unit(text, *span) for span in _spans(CLAUSES, text, start, end)]
        else:
            found.append(_unit(text, start, end))
    return tuple(unit for unit in found if unit.key)


@lru_cache(maxsize=4096)
def words_of(text: str) -> tuple[Unit, ...]:
    """Return the words of a text, for prompts of a single sentence."""
    return tuple(Unit(word[0], word.start(), word.end()) for word in re.finditer(r"\S+", text))


def _spans(marks: re.Pattern[str], text: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    for mark in marks.finditer(text, start, end):
        yield start, mark.start()
        start = mark.end()
    yield start, end


def _unit(text: str, start: int, end: int) -> Unit:
    part = text[start:end]
    return Unit(" ".join(part.split()), start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip()))


def numbered(units: Sequence[Unit]) -> list[tuple[str, int]]:
    r"""Return each unit's key and how often it stood before, so that every one is told from every other.

    >>> numbered(units_of("a\nb\na"))
    [('a', 0), ('b', 0), ('a', 1)]
    """
    seen = Counter[str]()
    found = []
    for unit in units:
        found.append((unit.key, seen[unit.key]))
        seen[unit.key] += 1
    return found


def word_count(text: str) -> int:
    """Return how many words a text has, or would have if its script put spaces between them.

    >>> word_count("You answer in one word."), word_count("请用一个词回答用户的问题。")
    (5, 6)
    """
    words, letters = len(WORD.findall(text)), sum(map(str.isalnum, text))
    return letters // 2 if letters > 6 * words and not text.isascii() else words


def most_have(values: Sequence[str], test: Callable[[str], object]) -> bool:
    """Tell whether nearly all values pass a test; without values none does.

    >>> most_have(["1", "2"], str.isdigit), most_have(["1", "a"], str.isdigit), most_have([], str.isdigit)
    (True, False, False)
    """
    return bool(values) and sum(bool(test(value)) for value in values) >= SHARE * len(values)


def shared(values: Sequence[str], share: float) -> str:
    """Return the longest beginning that at least such a share of some texts has.

    >>> shared(["text: a", "text: b", "no"], 0.6)
    'text: '
    """
    ordered = sorted(values)
    window = max(1, math.ceil(len(ordered) * share))
    best = ""
    for first, last in zip(ordered, ordered[window - 1 :], strict=False):
        if first[: len(best) + 1] == last[: len(best) + 1]:
            best = common(first, last)
    return best


def common(one: str, other: str) -> str:
    """Return what two texts both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return one[:low]
