"""A template with slots, found in other texts with any values in them: without doubt, or not at all.

Whatever the text, the time is linear in its length: the literal parts are looked for one by one, and a dynamic
programme tells which of their places follow each other with a value between that a slot takes.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from pilocal.server.wording import (
    BLANK,
    BREAKS,
    INVISIBLE,
    PREFIX_ENDS,
    TEXT_ENDS,
    TOKEN,
    blank_length,
    is_word,
    parted,
    squeeze,
)
from pilocal.task import Example
from pilocal.task.slots import clean, literals, slot_names

MOST_PLACES = 4096
"""Places of one literal part in a text; where there are more, nothing is found."""
MOST_READINGS = 64
"""Ways of reading a text that are looked at; where there are more, it is not clear which is meant."""

LINE_END = re.compile(rf"(?>\r\n|[{BREAKS}])")
SPACE = re.compile(r"\s+")
BLANK_LINE = re.compile(rf"(?>\r\n|[{BREAKS}])[^\S{BREAKS}]*+(?>\r\n|[{BREAKS}])[\s\0]*+")

Place = tuple[int, int]
"""Where a part of a text begins and ends."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the values of a slot look like, as far as the training has seen them."""

    lines: bool = False
    """Whether one may have several lines."""
    blank: bool = False
    """Whether one may be empty."""
    paragraphs: bool = False
    """Whether one may have blank lines within."""


def shapes_of(names: Iterable[str], examples: Iterable[Example]) -> dict[str, Shape]:
    r"""Return the shape of each slot's values.

    >>> shapes_of(["a"], [Example(id="1", query="", answer="", slots={"a": "x\ny"})])
    {'a': Shape(lines=True, blank=False, paragraphs=False)}
    """
    values: dict[str, set[str]] = {name: set() for name in names}
    for example in examples:
        for name in values.keys() & example.slots.keys():
            values[name].add(example.slots[name])
    marks = ("\n", "\n\n")
    found = {name: [any(mark in one for one in some) for mark in marks] for name, some in values.items()}
    return {name: Shape(lines, "" in values[name], paragraphs) for name, (lines, paragraphs) in found.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """A template that stands in a text."""

    pieces: list[str]
    """What stands before, between and behind the copies."""
    values: Mapping[str, str]
    """What stood in its slots."""


class SlottedWording:
    r"""A template that is found by the words around its slots, as `Wording` finds a text.

    >>> it = SlottedWording("Be brief.\nIt is {{today}}. Say so.", {"today": Shape()})
    >>> it.find("Be brief.  It is 30. Nov. 2026. Say so.\n\nWhich day?", whole=False)
    Found(pieces=['', 'Which day?'], values={'today': '30. Nov. 2026'})
    >>> it.find("Be very brief. It is Monday. Say so.", whole=True) is None
    True
    """

    def __init__(self, template: str, shapes: Mapping[str, Shape]) -> None:
        texts, self._names = literals(template, list(shapes))
        self._shapes = [shapes[name] for name in self._names]
        self._literals = [_Literal.of(text, first=not i, last=i == len(self._names)) for i, text in enumerate(texts)]

    def find(self, text: str, *, whole: bool) -> Found | None:
        """Return the template in a text; None when it is not there, or when it is not clear what its values are.

        With `whole` the text may be the template and nothing else, as a system message is, and is then read so. Else
        a query follows.
        """
        readings = _meant(text, self._readings(text, whole=whole), whole=whole)
        places = sorted(one.place for one in readings)
        if not places or any(before[1] > after[0] for before, after in pairwise(places)):
            return None
        values = readings[0].values
        return Found(_around(text, places), values) if all(one.values == values for one in readings) else None

    def _readings(self, text: str, *, whole: bool) -> list[_Reading]:
        """Return the ways of reading a text; none where there are more than MOST_READINGS."""
        squeezed = squeeze(text)
        if not all(literal.squeezed in squeezed for literal in self._literals):
            return []
        source = _Source.of(text, squeezed)
        places = [self._places(i, literal, source, whole=whole) for i, literal in enumerate(self._literals)]
        if any(not some or len(some) > MOST_PLACES for some in places):
            return []
        paths = list(islice(_paths(places, self._shapes, source), MOST_READINGS + 1))
        if len(paths) > MOST_READINGS:
            return []
        found = list[_Reading]()
        for path in paths:
            reading = self._reading(text, path)
            if reading is not None and reading not in found:
                found.append(reading)
        return found

    def _reading(self, text: str, path: Sequence[Place]) -> _Reading | None:
        """Return what a chain of places says; None where a slot has two values, or still its own name."""
        values: dict[str, str] = {}
        for name, (_, begin), (end, _) in zip(self._names, path, path[1:], strict=False):
            value = clean(text[begin:end].strip(BLANK))
            if values.setdefault(name, value) != value or name in slot_names(value):
                return None
        begin, end = path[0][0], path[-1][1]
        part = text[begin:end]
        return _Reading((begin + len(part) - len(part.lstrip(BLANK)), begin + len(part.rstrip(BLANK))), values)

    def _places(self, i: int, literal: _Literal, source: _Source, *, whole: bool) -> list[Place]:
        """Return where a literal part may stand."""
        if literal.squeezed:
            return source.places(literal)
        if literal.first:
            return [(0, 0)]
        if literal.last:
            return self._ends(source.text, self._shapes[i - 1], whole=whole)
        if not literal.text:
            return [(end, end) for _, end in source.spans]
        pattern = LINE_END if LINE_END.search(literal.text) else SPACE
        return [match.span() for match in pattern.finditer(source.text)]

    def _ends(self, text: str, shape: Shape, *, whole: bool) -> list[Place]:
        """Return where a value may end that nothing of the template follows."""
        end = [(len(text), len(text))] if whole else []
        if whole and shape.lines:
            return end
        pattern = BLANK_LINE if shape.lines else LINE_END
        return [*((match.start(), match.start()) for match in pattern.finditer(text)), *end]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way of reading a text."""

    place: Place
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Literal:
    """A part of a template between two slots, or at its ends."""

    text: str
    squeezed: str
    """Without the border to a word that a value may be joined to, as in `v{{version}}`."""
    first: bool
    last: bool

    @classmethod
    def of(cls, text: str, *, first: bool, last: bool) -> _Literal:
        squeezed = squeeze(text)
        if squeezed and not first and is_word(text[0]):
            squeezed = squeezed[1:]
        if squeezed and not last and is_word(text[-1]):
            squeezed = squeezed[:-1]
        return cls(text, squeezed, first, last)


@dataclass(frozen=True, slots=True)
class _Source:
    """A text in which parts of a template are looked for."""

    text: str
    squeezed: str
    spans: list[Place]
    """Where each of its tokens stands."""
    borders: list[int]
    """Where each NUL stands in `squeezed`."""

    @classmethod
    def of(cls, text: str, squeezed: str) -> _Source:
        """Take a text and what `squeeze` makes of it."""
        spans = [match.span() for match in TOKEN.finditer(text)]
        return cls(text, squeezed, spans, [i for i, char in enumerate(squeezed) if char == "\0"])

    def next_seen(self, at: int) -> int:
        """Return the first place from another on where there is no white space, or the end of the text."""
        number = bisect_left(self.spans, (at, at))
        if number and self.spans[number - 1][1] > at:
            return at
        return self.spans[number][0] if number < len(self.spans) else len(self.text)

    def places(self, literal: _Literal) -> list[Place]:
        """Return where a literal part stands, at most one more than MOST_PLACES."""
        found = list[Place]()
        at = self.squeezed.find(literal.squeezed)
        while at >= 0 and len(found) <= MOST_PLACES:
            if (place := self._place(at, at + len(literal.squeezed), literal)) is not None:
                found.append(place)
            at = self.squeezed.find(literal.squeezed, at + 1)
        return found

    def _place(self, begin: int, end: int, literal: _Literal) -> Place | None:
        """Return the place in the text of a place in `squeezed`; None where it is no place for the literal part."""
        start = self._offset(begin + (self.squeezed[begin] == "\0"))
        stop = self._offset(end - 1 - (self.squeezed[end - 1] == "\0"), last=True)
        if start is None or stop is None:
            return None
        stop += 1
        if literal.first and not self._begins(start, literal):
            return None
        if literal.last and not self._ends(stop, literal):
            return None
        return start, stop

    def _offset(self, at: int, *, last: bool = False) -> int | None:
        """Return where a character of `squeezed` stands in the text; None inside a token that was composed anew.

        With `last` it is the last of a place, else the first.
        """
        number = bisect_right(self.borders, at) - 1
        begin, end = self.spans[number]
        token = self.squeezed[self.borders[number] + 1 : self.borders[number + 1]]
        offset = at - self.borders[number] - 1
        if self.text[begin:end] == token:
            return begin + offset
        if offset != (len(token) - 1 if last else 0):
            return None
        return end - 1 if last else begin

    def _begins(self, start: int, literal: _Literal) -> bool:
        number = bisect_left(self.spans, (start, start))
        if number == 0:
            return True
        before = self.spans[number - 1]
        if before[1] > start:
            return False
        gap = self.text[before[1] : start].rstrip(INVISIBLE)
        return parted(gap, self.text[slice(*before)].rstrip(INVISIBLE)[-1], self.text[start], PREFIX_ENDS)

    def _ends(self, stop: int, literal: _Literal) -> bool:
        number = bisect_left(self.spans, (stop, stop))
        if number == len(self.spans):
            return True
        begin = self.spans[number][0]
        return parted(self.text[stop:begin], self.text[:stop].rstrip(INVISIBLE)[-1], self.text[begin], TEXT_ENDS)


def _meant(text: str, readings: list[_Reading], *, whole: bool) -> list[_Reading]:
    """Return the readings of a text that may be meant: of several copies each, or else what is all of the text."""
    places = sorted(one.place for one in readings)
    if places and min(end for _, end in places) <= places[-1][0]:  # two copies: no value holds a whole one
        return [one for one in readings if not any(_holds(one.place, other) for other in places)]
    covering = [one for one in readings if _covers(text, one.place)] if whole else []
    return covering or readings


def _holds(place: Place, other: Place) -> bool:
    return place != other and place[0] <= other[0] and other[1] <= place[1]


def _around(text: str, places: Sequence[Place]) -> list[str]:
    """Return what stands before, between and behind some places of a text, as `Wording.around` does."""
    pieces, done = [], 0
    for start, end in places:
        pieces.append(text[done:start].rstrip(BLANK))
        done = end
    pieces.append(text[done:])
    return [pieces[0], *(piece[blank_length(piece) :] for piece in pieces[1:])]


def _covers(text: str, place: Place) -> bool:
    return not text[: place[0]].strip(BLANK) and not text[place[1] :].strip(BLANK)


def _paths(places: Sequence[Sequence[Place]], shapes: Sequence[Shape], source: _Source) -> Iterator[list[Place]]:
    """Yield the chains of places, one of each part, between which a value stands; from the beginning of the text on.

    No time is lost on chains that come to no end: from every place it is known which of the next lead on.
    """
    breaks = [match.start() for match in LINE_END.finditer(source.text)]
    last = len(places) - 1
    leads: list[list[int]] = [[] for _ in places]
    """Of each part the places that lead to the end."""
    leads[last] = list(range(len(places[last])))
    ahead: list[list[tuple[int, int]]] = [[] for _ in places]
    """Of each place that leads on, which of the next part's, from the first to before the last in `leads`."""
    for part in range(last - 1, -1, -1):
        starts = [places[part + 1][number][0] for number in leads[part + 1]]
        for number, (_, end) in enumerate(places[part]):
            low, high = _reach(end, shapes[part], breaks, source)
            span = bisect_left(starts, low), bisect_right(starts, high)
            if span[0] < span[1]:
                leads[part].append(number)
                ahead[part].append(span)
    stack = [(0, index, [places[0][number]]) for index, number in reversed(list(enumerate(leads[0])))]
    while stack:
        part, index, path = stack.pop()
        if part == last:
            yield path
            continue
        low, high = ahead[part][index]
        for following in range(min(high - 1, low + MOST_READINGS), low - 1, -1):
            stack.append((part + 1, following, [*path, places[part + 1][leads[part + 1][following]]]))


def _reach(end: int, shape: Shape, breaks: Sequence[int], source: _Source) -> Place:
    """Return between which places the part behind a value may begin, if the value begins behind `end`."""
    begin, size = source.next_seen(end), len(source.text)
    low = end if shape.blank else begin + 1
    line = bisect_left(breaks, begin)
    return low, size if shape.lines or line == len(breaks) else source.next_seen(breaks[line])
