"""Which queries are asked: the user's own first, then new ones until every entry of the template is covered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pilocal.synth.entries import Entry, read_entries, read_names
from pilocal.synth.recombine import Recombiner, key_of

OWN, RECOMBINED = ORIGINS = ("own", "recombined")
"""Where a query comes from: the user's file without answers, or other queries."""

TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")

HELD_OUT = 2
"""Queries of each entry that are made for a split that is not trained on."""


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


@dataclass(slots=True)
class Coverage:
    """What the queries of a task touch, and the queries that are missing."""

    entries: list[Entry]
    known: Counter[int]
    """How many queries of the solved examples name an entry, by its number."""
    nameable: list[int]
    """The entries that queries can name."""
    asked: list[Asked] = field(default_factory=list)
    """The queries to be answered, in their order."""


def cover(
    template: str,
    solved: Sequence[str],
    own: Sequence[str],
    forbidden: Iterable[str],
    *,
    per_entry: int,
    seed: int,
    held_out: Mapping[str, Sequence[str]],
) -> Coverage:
    """Return the queries that a task lacks.

    `solved` are the queries of its training examples, `own` the user's without answers, `forbidden` those of validation
    and test, which are never asked. Every entry that queries can name is named by at least `per_entry` of them all, and
    by HELD_OUT in each split of `held_out`, the queries there included, unless the wordings are used up.
    """
    entries = read_entries(template)
    spoken = [*solved, *own]
    recombiner = Recombiner(entries, read_names(entries, spoken), spoken)
    known = Counter(number for query in solved for number in set(recombiner.entries_of(query)))
    found = Coverage(entries, known, recombiner.named)
    counts = Counter(known)
    taken = {key_of(query) for query in (*solved, *forbidden)}
    for query in own:
        if key_of(query) not in taken:
            taken.add(key_of(query))
            named = recombiner.entries_of(query)
            counts.update(set(named))
            found.asked.append(Asked(query=query, origin=OWN, entries=named, split=TRAIN))
    for made in recombiner.make(counts, per_entry, taken, seed):
        found.asked.append(Asked(query=made.query, origin=RECOMBINED, entries=made.entries, split=TRAIN))
    for turn, (split, there) in enumerate(held_out.items(), 1):
        has = Counter(number for query in there for number in set(recombiner.entries_of(query)))
        for made in recombiner.make(has, HELD_OUT, taken, seed + turn):
            found.asked.append(Asked(query=made.query, origin=RECOMBINED, entries=made.entries, split=split))
    return found
