"""The entries of a template: what it says, one statement each, and how queries name the entries of its lists."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from pilocal.compress.outline import FENCE, Outline
from pilocal.compress.statements import read_statements

TOKEN = re.compile(r"\w+(?:[-'\u2019.]\w+)*")
"""A word of an entry or of a query."""

SEPARATOR = re.compile(r"\s*(?:[:=|\u2192\u21d2]|[-=]>|\s[-\u2013\u2014]+\s)\s*")
"""What may stand between an entry's name and the rest."""

LONGEST_NAME = 4
"""Words."""

MANY_ENTRIES = 5
"""A list that is shorter needs queries that differ in nothing but a name of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One statement of a template: a list item, a sentence, or a block of code."""

    number: int
    """Its place among the entries."""
    text: str
    group: int | None
    """The list that it stands in; None outside a list."""
    begin: int
    """Where it begins in the template."""
    end: int
    """Where it ends."""


@dataclass(frozen=True, slots=True)
class Names:
    """What queries call the entries of one list."""

    group: int
    """The list."""
    by_entry: dict[int, str]
    """The name of each entry, by its number; as the template writes it."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of naming every entry of a list."""

    names: dict[int, str]
    """By the entry's number."""
    regular: bool
    """Whether the list has one form: a separator after each name, as many words in each, or the same around it."""


def read_entries(template: str) -> list[Entry]:
    r"""Return the entries of a template, in its order; headings, labels and turns of a dialogue are none.

    >>> [entry.text for entry in read_entries("Codes.\n- lamp NIZ\n- door VOL\nBe brief. Use a comma.")]
    ['Codes.', 'lamp NIZ', 'door VOL', 'Be brief.', 'Use a comma.']
    """
    found: list[Entry] = []
    lists: dict[int | None, int] = {}
    for one in read_statements(Outline(template)):
        text = template[one.begin : one.end].strip()
        text = text if FENCE.match(text) else " ".join(text.split())
        group = lists.setdefault(one.unit.owner, len(lists)) if one.unit.is_bullet else None
        found.append(Entry(len(found), text, group, one.begin, one.end))
    return found


def without(template: str, entry: Entry) -> str:
    r"""Return a template without one of its entries.

    >>> template = "Codes.\n- lamp NIZ\n- door VOL"
    >>> without(template, read_entries(template)[1])
    'Codes.\n- door VOL'
    """
    return _without(template, [entry])


def alone(template: str, numbers: Collection[int]) -> str:
    r"""Return a template in which some entries stand alone, among the rules and headings that they are read by.

    Entries of lists lose the other entries of lists, and keep the prose. A sentence of prose loses all but the first,
    which states the task.

    >>> alone("Codes.\n- lamp NIZ\n- door VOL\nBe brief.", [2])
    'Codes.\n- door VOL\nBe brief.'
    >>> alone("You sell bikes. A bike costs 5. A lock costs 1.", [2])
    'You sell bikes. A lock costs 1.'
    """
    entries = read_entries(template)
    in_lists = all(entries[number].group is not None for number in numbers)
    others = [entry for entry in entries[1:] if entry.number not in numbers]
    return _without(template, [entry for entry in others if entry.group is not None or not in_lists])


def _without(template: str, entries: Sequence[Entry]) -> str:
    """Return a template without some of its entries, and the lines that they leave empty."""
    outline, gone, cuts = Outline(template), set[int](), list[tuple[int, int]]()
    spans = outline.spans
    for entry in entries:
        for number, (begin, end) in enumerate(spans):
            if entry.begin <= begin and end <= entry.end:
                gone.add(number)
            elif begin < entry.end and entry.begin < end:
                cuts.append((max(begin, entry.begin), min(end, entry.end)))
    return outline.text(gone, cuts)


class Index:
    """Finds in a query the names of entries."""

    def __init__(self, names: Sequence[Names]) -> None:
        self.names = {number: name for one in names for number, name in one.by_entry.items()}
        """What each entry that queries can name is called, by its number."""
        self.groups = {number: one.group for one in names for number in one.by_entry}
        """The list of each of them."""
        self._numbers = {_key(name): number for number, name in self.names.items()}
        longest_first = sorted(map(str.lower, self.names.values()), key=lambda name: (-len(name), name))
        words = "|".join(re.escape(name).replace(r"\ ", r"\W+") for name in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)" if words else r"(?!)", re.IGNORECASE)

    def entries_of(self, *queries: str) -> tuple[int, ...]:
        """Return the numbers of the entries that a query, or some, name, in their order."""
        found = (match for query in queries for match in self._pattern.finditer(query))
        return tuple(self._numbers[_key(match.group())] for match in found)

    def around(self, query: str) -> tuple[str, ...]:
        """Return what stands before, between and behind the names in a query."""
        return tuple(self._pattern.split(query))


def _key(name: str) -> str:
    """Return a name as it is looked up, whatever stands between its words in a query.

    >>> _key("A-12"), _key("night  light")
    ('a 12', 'night light')
    """
    return " ".join(re.split(r"\W+", name.lower()))


def read_names(entries: Sequence[Entry], queries: Sequence[str]) -> list[Names]:
    """Return how queries name the entries of each list of which they name some.

    A name is a part of the entry's text at the same place in every entry of the list: what stands before a separator,
    what some words at both ends leave, or so many words. Of these places the one counts whose names occur in queries
    for the most entries, and then in the most queries; of equals the first in this order. A common word may occur by
    chance, as in a list of sentences. So either queries name half of MANY_ENTRIES or more in a list of one form
    (`Way.regular`), or two queries differ in nothing but such a name.
    """
    spoken = [f" {' '.join(words_of(query)).lower()} " for query in queries]
    groups: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.group is not None:
            groups.setdefault(entry.group, []).append(entry)
    found = ((group, _best_names(members, spoken)) for group, members in groups.items())
    return [Names(group, names) for group, names in found if names]


def _best_names(members: Sequence[Entry], spoken: Sequence[str]) -> dict[int, str] | None:
    """Return how queries name the entries of a list, or None where they do not."""

    def hits(way: Way) -> tuple[int, int]:
        counts = [sum(f" {name.lower()} " in text for text in spoken) for name in way.names.values()]
        return sum(map(bool, counts)), sum(counts)

    ways = list(_candidates(members))
    regular = max((way for way in ways if way.regular), key=hits, default=None)  # the first of equals
    if regular and MANY_ENTRIES <= len(members) <= 2 * hits(regular)[0]:
        return regular.names
    best = max(ways, key=hits, default=None)
    return best.names if best and _interchanged(best.names.values(), spoken) else None


def _interchanged(names: Iterable[str], spoken: Sequence[str]) -> bool:
    """Tell whether two queries differ in nothing but a name."""
    frames: dict[str, str] = {}
    for name in names:
        part = f" {name.lower()} "
        for text in spoken:
            if part in text and frames.setdefault(text.replace(part, " \0 "), name) != name:
                return True
    return False


def words_of(text: str) -> list[str]:
    """Return the words of a text.

    >>> words_of("Please, reset the A-12!")
    ['Please', 'reset', 'the', 'A-12']
    """
    return TOKEN.findall(text)


def _candidates(members: Sequence[Entry]) -> Iterator[Way]:
    """Yield each way of naming every entry of a list in which all names differ."""
    texts = {entry.number: words_of(entry.text) for entry in members}
    for found, regular in _ways(members, texts):
        names = {number: " ".join(words) for number, words in found.items()}
        different = len({name.lower() for name in names.values()}) == len(names)
        if different and all(0 < len(words) <= LONGEST_NAME for words in found.values()):
            yield Way(names, regular)


def _ways(members: Sequence[Entry], texts: dict[int, list[str]]) -> Iterator[tuple[dict[int, list[str]], bool]]:
    """Yield the words that name every entry, in each way, and whether it is regular."""
    even = _same(len(words) for words in texts.values())

    def equal(begin: int, end: int) -> bool:
        return even or _same(words[begin:end] for words in texts.values())

    if all(SEPARATOR.search(entry.text) for entry in members):
        yield {entry.number: words_of(SEPARATOR.split(entry.text, maxsplit=1)[0]) for entry in members}, True
    for skip, rest in product(range(4), range(4)):
        yield {number: words[skip : len(words) - rest] for number, words in texts.items()}, equal(0, skip)
    for skip, count in product(range(4), range(1, LONGEST_NAME + 1)):
        end = skip + count
        alike = equal(0, skip) and equal(end, end + 1)
        yield {number: words[skip:end] for number, words in texts.items()}, alike


def _same(values: Iterable[object]) -> bool:
    """Tell whether values are all the same."""
    values = list(values)
    return all(value == values[0] for value in values)
