"""New queries from those that exist: the names of entries in them are taken out and others of the same list put in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from pilocal.compress.entries import Index
from pilocal.task.text import key_of

TRIES = 40
"""How often a query that exists already is made differently before its entry is given up."""

COMPOSED = 1 / 3
"""The share of the new queries in which every name, and not one alone, is of an entry that lacks queries."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A query without the names of entries: texts, and between them the lists that a name may come from."""

    texts: tuple[str, ...]
    """One more than there are lists."""
    groups: tuple[int, ...]

    def fill(self, names: Sequence[str]) -> str:
        """Return the query with these names."""
        return "".join(text + name for text, name in zip(self.texts, [*names, ""], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A new query."""

    query: str
    entries: tuple[int, ...]
    """The numbers of the entries that it names, in its order."""
    frame: Frame
    """The wording."""


class Recombiner:
    """Knows the wordings of some queries, and the names that may stand in them."""

    def __init__(self, index: Index, queries: Sequence[str]) -> None:
        """Find the names in the queries."""
        self.index = index
        frames = dict.fromkeys(self._frame(query) for query in queries)
        self.frames = [frame for frame in frames if frame.groups]

    @property
    def named(self) -> list[int]:
        """The entries that a query can name."""
        return sorted(self.index.names)

    def _frame(self, query: str) -> Frame:
        groups = tuple(self.index.groups[number] for number in self.index.entries_of(query))
        return Frame(self.index.around(query), groups)

    def make(self, counts: Mapping[int, int], per_entry: int, taken: set[str], seed: int) -> list[Made]:
        """Return queries until each entry that a query can name has `per_entry`; `counts` says how many it has.

        `taken` are the queries that must not be made (`key_of`); those that are made are added. An entry whose every
        wording is used up has fewer.
        """
        draw, have, made = random.Random(seed), Counter(counts), list[Made]()
        used: Counter[tuple[int, Frame]] = Counter()
        open_entries = {number for number in self.named if have[number] < per_entry}
        while open_entries:
            entry = min(open_entries, key=lambda number: (have[number], number))
            found = self._new(entry, have, used, taken, draw)
            if found is None:
                open_entries.discard(entry)
                continue
            made.append(found)
            taken.add(key_of(found.query))
            used[entry, found.frame] += 1
            have.update(set(found.entries))
            open_entries -= {number for number in found.entries if have[number] >= per_entry}
        return made

    def _new(
        self, entry: int, have: Counter[int], used: Counter[tuple[int, Frame]], taken: set[str], draw: random.Random
    ) -> Made | None:
        """Return a query for an entry in the wording that it has had least often, or None where none is left."""
        group = self.index.groups[entry]
        frames = [frame for frame in self.frames if group in frame.groups]
        draw.shuffle(frames)
        frames.sort(key=lambda frame: used[entry, frame])
        for frame in islice(cycle(frames), TRIES):
            composed = draw.random() < COMPOSED
            own = frame.groups.index(group)
            chosen = [entry if at == own else self._other(other, have, composed, draw) for at, other in
                      enumerate(frame.groups)]  # fmt: skip
            query = frame.fill([self.index.names[number] for number in chosen])
            if key_of(query) not in taken and len(set(chosen)) == len(chosen):
                return Made(query=query, entries=tuple(chosen), frame=frame)
        return None

    def _other(self, group: int, have: Counter[int], composed: bool, draw: random.Random) -> int:
        """Return an entry for another place of a query: one that lacks queries if it is `composed`, else any."""
        members = [number for number in self.named if self.index.groups[number] == group]
        if not composed:
            return draw.choice(members)
        least = min(have[number] for number in members)
        return draw.choice([number for number in members if have[number] == least])
