"""A frame: the fixed texts of a message in their order, and what stands between them, each under a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from pilocal.logs.exchange import UNCLEAR, LeftOut
from pilocal.task.slots import clean

QUERY = "query"
"""The hole that is what is asked; no slot may have this name."""

MOST = 64
"""Ways to read a text that are looked at."""

Span = tuple[int, int]
"""Where a fixed text begins and ends."""


@dataclass(frozen=True, slots=True)
class Frame:
    r"""What recurs in one message of every request.

    >>> frame = Frame(("Today is ", ".\nBe kind.\n", ""), ("today", QUERY))
    >>> frame.match("Today is Monday.  Be kind. Who?")
    {'today': 'Monday', 'query': 'Who?'}
    """

    texts: tuple[str, ...] = ("",)
    """As they stand, white space included; the first and the last may be blank."""
    names: tuple[str, ...] = ()
    """What stands between each of them and the next."""
    multiline: frozenset[str] = field(default_factory=frozenset)
    """Names of slots whose values are known to have several lines."""

    def match(self, text: str) -> dict[str, str] | None:
        """Return what a text has under each name, without the spaces around it; None where it is not in this frame.

        The query is as long as it can be. Raises LeftOut where it is not clear what a slot holds.
        """
        for lines in (False, True):
            try:
                paths = self._paths(text, lines=lines)
            except OverflowError:
                raise LeftOut(UNCLEAR, "too many ways to read it") from None
            if paths:
                return self._read(text, paths)
        return None

    def missing(self, text: str) -> str:
        """Return the beginning of the first fixed text that is not in a text; empty where all are there."""
        for fixed in filter(str.strip, self.texts):
            if not _pattern(fixed).search(text):
                return _first_unlike(fixed, text)
        return ""

    def fits_exactly(self, text: str, values: Mapping[str, str]) -> bool:
        """Tell whether a text is this frame with these values to the last space, except those around the query."""
        parts = [
            part for pair in zip(self.texts, [*(values[name] for name in self.names), ""], strict=True) for part in pair
        ]
        if QUERY not in self.names:
            return "".join(parts) == text
        at = 2 * self.names.index(QUERY) + 1
        front, behind = "".join(parts[:at]).rstrip(), "".join(parts[at + 1 :]).lstrip()
        return text.startswith(front) and text.endswith(behind)

    def _paths(self, text: str, *, lines: bool) -> list[list[Span]]:
        """Return the places of all fixed texts for each way to read the text; with `lines` any value may have some."""
        spans = self._spans(text)
        if QUERY not in self.names:
            return self._chained(text, spans, 0, lines=lines)
        at = self.names.index(QUERY) + 1
        front = self._chained(text, spans[:at], 0, lines=lines)
        behind = self._chained(text, spans[at:], at, lines=lines)
        ends, starts = {path[-1][1] for path in front}, {path[0][0] for path in behind}
        if not ends or not starts or min(ends) > max(starts):
            return []
        return [
            one + other for one in front for other in behind if one[-1][1] == min(ends) and other[0][0] == max(starts)
        ]

    def _chained(self, text: str, spans: Sequence[Sequence[Span]], first: int, *, lines: bool) -> list[list[Span]]:
        """Return the ways to choose one place of each fixed text from a number on, in their order."""
        paths = [[span] for span in spans[0]]
        for name, following in zip(self.names[first:], spans[1:], strict=False):
            paths = [
                [*path, span]
                for path in paths
                for span in following
                if path[-1][1] <= span[0] and (lines or self._fits(name, text[path[-1][1] : span[0]]))
            ]
            if len(paths) > MOST:
                raise OverflowError
        return paths

    def _fits(self, name: str, held: str) -> bool:
        return name in self.multiline or "\n" not in held.strip()

    def _spans(self, text: str) -> list[list[Span]]:
        """Return where each fixed text stands; the first begins the text, and the last ends it."""
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if begin >= end:
            begin = end = 0
        found = []
        last = len(self.texts) - 1
        for number, fixed in enumerate(self.texts):
            inside = fixed.strip() or 0 < number < last
            places = _places(_pattern(fixed), text) if inside else [(begin, begin) if number == 0 else (end, end)]
            found.append(
                [span for span in places if (number or span[0] == begin) and (number < last or span[1] == end)]
            )
        return found

    def _read(self, text: str, paths: Sequence[Sequence[Span]]) -> dict[str, str]:
        """Return what the ways to read a text agree on; raises LeftOut where they do not."""
        found: list[dict[str, str]] = []
        for path in paths:
            values: dict[str, str] = {}
            held = [text[before[1] : behind[0]] for before, behind in pairwise(path)]
            for name, value in zip(self.names, held, strict=True):
                if values.setdefault(name, clean(value)) != clean(value):
                    break
            else:
                found += [values] if values not in found else []
        if not found:
            raise LeftOut(UNCLEAR, "a slot has two values")
        if len(found) > 1:
            unlike = next(name for name in self.names if len({values[name] for values in found}) > 1)
            raise LeftOut(UNCLEAR, f"{unlike} may be {found[0][unlike][:40]!r} or {found[1][unlike][:40]!r}")
        return found[0]


def _places(pattern: re.Pattern[str], text: str) -> list[Span]:
    """Return where a pattern stands in a text; places may overlap."""
    found = list[Span]()
    match = pattern.search(text)
    while match and len(found) <= MOST:
        found.append(match.span())
        match = pattern.search(text, match.start() + 1)
    return found


def _first_unlike(fixed: str, text: str) -> str:
    """Return the first line of a fixed text that a text does not have."""
    lines = [line for line in fixed.split("\n") if line.strip()]
    return next((line.strip() for line in lines if not _pattern(line).search(text)), lines[0].strip())


@lru_cache(maxsize=512)
def _pattern(fixed: str) -> re.Pattern[str]:
    """Return what finds a text, whatever its white space; where spaces are around it, it is no part of a word."""
    words = fixed.split()
    if not words:
        return re.compile(r"\n\s*" if "\n" in fixed else r"\s+")
    begins = r"(?<!\w)" if fixed[0].isspace() and re.match(r"\w", words[0]) else ""
    ends = r"(?!\w)" if fixed[-1].isspace() and re.search(r"\w\Z", words[-1]) else ""
    return re.compile(begins + r"\s+".join(map(re.escape, words)) + ends)
