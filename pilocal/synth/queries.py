"""Which queries are asked: the user's own first, then new ones until every entry of the template is covered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from pilocal.compress.entries import Entry, Index, read_entries, read_names
from pilocal.synth.generator import WORDINGS
from pilocal.synth.recombine import Recombiner
from pilocal.task.text import key_of

OWN, RECOMBINED, GENERATED = ORIGINS = ("own", "recombined", "generated")
"""Where a query comes from: the user's file without answers, other queries, or a generator."""

TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")

HELD_OUT = 2
"""Queries of each entry that are made for a split that is not trained on."""

FEWEST_OWN = 5
"""Of your own queries one in so many goes to a split that would have none otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query to be answered."""

    query: str
    origin: str
    """One of ORIGINS."""
    entries: tuple[int, ...]
    """The numbers of the entries that it names."""
    split: str
    """The file that it belongs to."""

    def is_composed(self) -> bool:
        """Tell whether it names several entries."""
        return len(set(self.entries)) > 1


@dataclass(slots=True)
class Coverage:
    """What the queries of a task touch, and the queries that are missing."""

    entries: list[Entry]
    known: Counter[int]
    """How many queries of the solved examples name an entry, by its number."""
    nameable: list[int]
    """The entries that queries can name."""
    index: Index
    """Finds their names."""
    solved: Sequence[str]
    """The queries of the solved examples."""
    asked: list[Asked] = field(default_factory=list)
    """The queries to be answered, in their order."""
    taken: set[str] = field(default_factory=set)
    """What no further query may be (`key_of`)."""

    def counts(self, split: str) -> Counter[int]:
        """Return how many queries of a split name each entry; for training, those of the solved examples, too."""
        found = Counter(self.known if split == TRAIN else ())
        for one in self.asked:
            found.update(set(one.entries) if one.split == split else ())
        return found

    def wordings(self, asked: Iterable[Asked]) -> Counter[int]:
        """Return in how many wordings training queries ask for each entry: the solved ones, and those of `asked`."""
        found: dict[int, set[tuple[str, ...]]] = {}
        queries: list[tuple[str, tuple[int, ...]]] = [(query, ()) for query in self.solved]
        queries += [(one.query, one.entries) for one in asked if one.split == TRAIN]
        for query, entries in queries:
            frame = tuple(key_of(part) for part in self.index.around(query))
            for number in {*entries, *self.index.entries_of(query)}:
                found.setdefault(number, set()).add(frame)
        return Counter({number: len(frames) for number, frames in found.items()})

    def few_wordings(self, asked: Iterable[Asked]) -> list[str]:
        """Return the entries that queries can name and training queries ask for in fewer than WORDINGS wordings."""
        found = self.wordings(asked)
        return [self.entries[number].text for number in self.nameable if found[number] < WORDINGS]

    def lacking(self, per_entry: int, held_out: Collection[str]) -> list[tuple[Entry, int]]:
        """Return the entries that have too few queries or wordings, with how many are missing in all splits together.

        A generated query has a wording of its own.
        """
        wanted = {TRAIN: per_entry} | dict.fromkeys(held_out, HELD_OUT)
        counts = {split: self.counts(split) for split in wanted}
        wordings = self.wordings(self.asked)

        def lacks(split: str, count: int, number: int) -> int:
            few = min(WORDINGS, per_entry) - wordings[number] if split == TRAIN else 0
            return max(0, count - counts[split][number], few)

        missing = [
            (entry, sum(lacks(split, count, entry.number) for split, count in wanted.items())) for entry in self.entries
        ]
        return [(entry, count) for entry, count in missing if count]

    def add(
        self, entry: Entry, queries: Sequence[tuple[tuple[int, ...], str]], per_entry: int, held_out: Collection[str]
    ) -> None:
        """Take what was generated for an entry: every other query for a split that is held out, until each has its own.

        Each comes with the numbers of the entries that it asks for.
        """
        room = [split for split in held_out for _ in range(HELD_OUT - self.counts(split)[entry.number])]
        left = per_entry - self.counts(TRAIN)[entry.number]
        for number, (entries, query) in enumerate(queries):
            split = room.pop(0) if room and (number % 2 or left <= 0) else TRAIN
            left -= split == TRAIN
            self.asked.append(Asked(query=query, origin=GENERATED, entries=entries, split=split))

    def take_own(self, queries: Iterable[str], declared: Mapping[str, int]) -> None:
        """Ask the user's own queries, each once; `declared` is as for `cover`."""
        for query in queries:
            key = key_of(query)
            if key not in self.taken:
                self.taken.add(key)
                named = (declared[key],) if key in declared else self.index.entries_of(query)
                self.asked.append(Asked(query=query, origin=OWN, entries=named, split=TRAIN))

    def hold_out(self, split: str) -> None:
        """Give a split that got no query some of the user's own: each fifth that is trained on so far."""
        own = [i for i, one in enumerate(self.asked) if one.split == TRAIN and one.origin == OWN]
        if not any(one.split == split for one in self.asked):
            for i in own[FEWEST_OWN - 1 :: FEWEST_OWN]:
                self.asked[i] = replace(self.asked[i], split=split)


def cover(
    template: str,
    solved: Sequence[str],
    own: Sequence[str],
    forbidden: Iterable[str],
    *,
    per_entry: int,
    seed: int,
    held_out: Mapping[str, Sequence[str]],
    declared: Mapping[str, int] = MappingProxyType({}),
) -> Coverage:
    """Return the queries that a task lacks.

    `solved` are the queries of its training examples, `own` the user's without answers, `forbidden` those of validation
    and test, which are never asked; `declared` says of some of your own which entry they ask for, by `key_of`, so that
    no name is looked for in them. Every entry that queries can name is named by at least `per_entry` of them all, and
    by HELD_OUT in each split of `held_out`, the queries there included, unless the wordings are used up.
    """
    entries = read_entries(template)
    spoken = [*solved, *(query for query in own if key_of(query) not in declared)]
    index = Index(read_names(entries, spoken))
    recombiner = Recombiner(index, spoken)
    known = Counter(number for query in solved for number in set(index.entries_of(query)))
    taken = {key_of(query) for query in (*solved, *forbidden)}
    found = Coverage(entries, known, recombiner.named, index, solved, taken=taken)
    found.take_own(own, declared)
    for made in recombiner.make(found.counts(TRAIN), per_entry, taken, seed):
        found.asked.append(Asked(query=made.query, origin=RECOMBINED, entries=made.entries, split=TRAIN))
    for turn, (split, there) in enumerate(held_out.items(), 1):
        has = Counter(number for query in there for number in set(index.entries_of(query)))
        for made in recombiner.make(has, HELD_OUT, taken, seed + turn):
            found.asked.append(Asked(query=made.query, origin=RECOMBINED, entries=made.entries, split=split))
    return found
