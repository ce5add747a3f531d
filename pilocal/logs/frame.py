"""A frame: the fixed texts of a message in their order, and the places between them where it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Frame:
    """What recurs in one message of every request.

    A hole is before each fixed text and after the last; a closed hole holds white space alone.

    >>> Frame(("Answer.", "Be kind."), (False, True, False), 1).match("Answer. Today is Monday.  Be kind.")
    ('', 'Today is Monday.', '')
    """

    fixed: tuple[str, ...] = ()
    open: tuple[bool, ...] = (True,)
    """Whether each hole may hold text: one more than the fixed texts."""
    pivot: int = 0
    """The hole that takes as much as it can, such as the query: what is before it is looked for from the front."""

    def match(self, text: str) -> tuple[str, ...] | None:
        """Return what a text has in each hole, without the spaces around it; None where it is not in this frame."""
        front, back = 0, len(text)
        before, after = list[str](), list[str]()
        for number in range(self.pivot):
            found = _pattern(self.fixed[number]).search(text, front)
            if found is None or not self._fits(number, text[front : found.start()]):
                return None
            before.append(text[front : found.start()].strip())
            front = found.end()
        for number in range(len(self.fixed) - 1, self.pivot - 1, -1):
            last = None
            for last in _pattern(self.fixed[number]).finditer(text, front, back):  # noqa: B007
                pass
            if last is None or not self._fits(number + 1, text[last.end() : back]):
                return None
            after.insert(0, text[last.end() : back].strip())
            back = last.start()
        middle = text[front:back]
        return (*before, middle.strip(), *after) if self._fits(self.pivot, middle) else None

    def _fits(self, hole: int, held: str) -> bool:
        return self.open[hole] or not held.strip()

    def missing(self, text: str) -> str:
        """Return the beginning of the first fixed text that is not in a text; empty where all are there."""
        for fixed in self.fixed:
            if not _pattern(fixed).search(text):
                return _first_unlike(fixed, text)
        return ""


def _first_unlike(fixed: str, text: str) -> str:
    """Return the first line of a fixed text that a text does not have."""
    lines = [line for line in fixed.split("\n") if line.strip()]
    return next((line.strip() for line in lines if not _pattern(line).search(text)), lines[0].strip())


@lru_cache(maxsize=512)
def _pattern(fixed: str) -> re.Pattern[str]:
    """Return what finds a text whatever the white space between its words."""
    return re.compile(r"\s+".join(map(re.escape, fixed.split())))
