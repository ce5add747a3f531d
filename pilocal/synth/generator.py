"""Queries from a generator: a model is shown an entry of the template, or two, and writes what users would ask."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from pilocal.compress.entries import Entry, read_entries
from pilocal.task.text import key_of

STYLES = (
    "somebody would write them in whole sentences",
    "somebody in a hurry would, in a few words",
    "somebody would who does not know the right words for it",
    "somebody would who says first why it matters",
)
"""How the requests of one call are worded; an entry is shown with one after the other until it has enough."""

A_CALL = 6
"""Requests that are asked for at once; in longer lists small models repeat themselves."""

SHOWN = 3
"""Queries that exist of which the generator sees the form."""

LEAD = 300
"""Characters of the template's first sentence that a generator is shown: they say what the assistant is for."""

LONGEST = 300
"""Characters of a request; what is longer is an explanation."""

ALIKE = 0.9
"""Two queries whose character n-grams have a cosine above this are one."""

MEAN_THE_SAME = 0.95
"""Two queries whose embeddings have a cosine above this are one."""

WORDINGS = 3
"""An entry's queries are taken from so many styles at least, where the generator writes enough."""

COMPOSED = 3
"""One of so many queries of an entry asks for another entry, too."""

MARK = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,3}[.):])\s*|^\s*(?:request|question|user|q)\s*\d*\s*:\s*", re.IGNORECASE)
"""What a model puts before the lines of a list."""

QUOTES = "\"'`\u201c\u201d\u201e\u00ab\u00bb*"

Write = Callable[[Sequence[str]], list[str]]
"""What answers requests, each without a memory of the others."""

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]
"""What makes of texts vectors of length 1."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An entry, or two together, for which queries are wanted in one style."""

    entries: tuple[Entry, ...]
    style: str

    def request(self, lead: str, like: Sequence[str]) -> str:
        """Return what the generator is asked; `lead` is how the template begins, `like` are queries that exist.

        The rest of the template is left out: small models write about it, and not about the entry.
        """
        texts = "\n".join(entry.text for entry in self.entries)
        two = len(self.entries) > 1
        what = "Two parts of an assistant's instructions are" if two else "One part of an assistant's instructions is"
        parts = [f"{what}:\n{texts}"]
        if lead:
            parts.append(f"The instructions begin like this:\n{lead}")
        if like:
            parts.append("Users write to the assistant like this:\n" + "\n".join(like))
        about = "that need both parts" if two else "about that part"
        parts.append(
            f"Write {A_CALL} different questions {about} that a user could ask, as {self.style}. "
            "One per line, no answers."
        )
        return "\n\n".join(parts)


def read_requests(text: str) -> list[str]:
    r"""Return the requests in what a generator wrote, one a line, without marks and quotes.

    >>> read_requests('Here are some:\n1. "When do you open?"\n2) Open today?\n\n- Opening hours, please')
    ['When do you open?', 'Open today?', 'Opening hours, please']
    """
    found = []
    for line in text.splitlines():
        bare = MARK.sub("", line).strip().strip(QUOTES).strip()
        if bare and len(bare) <= LONGEST and not bare.endswith(":"):
            found.append(bare)
    return list(dict.fromkeys(found))


class Sieve:
    """Lets each query through once: not one that is taken, nor one that is nearly the same."""

    def __init__(self, taken: set[str], alike: Sequence[tuple[Vectors, float]]) -> None:
        """Begin with what is taken (`key_of`); what passes is added.

        Two queries are nearly the same if, for one of the `alike`, their vectors have a cosine above its bound.
        """
        self.taken, self._alike = taken, alike
        self._seen = [vectors(sorted(taken)) if taken else None for vectors, _ in alike]

    def passes(self, query: str) -> bool:
        """Tell whether a query is new."""
        key = key_of(query)
        if key in self.taken:
            return False
        own = [vectors([key]) for vectors, _ in self._alike]
        for (_, bound), seen, vector in zip(self._alike, self._seen, own, strict=True):
            if seen is not None and float((seen @ vector[0]).max()) > bound:
                return False
        self.taken.add(key)
        pairs = zip(self._seen, own, strict=True)
        self._seen = [vector if seen is None else np.concatenate([seen, vector]) for seen, vector in pairs]
        return True


@dataclass(slots=True)
class _Need:
    """What an entry still lacks."""

    entry: Entry
    partners: list[Entry]
    """Entries that are shown with it, another one in each style."""
    missing: dict[int, int]
    """Queries that ask for it alone (1), and with another entry (2)."""
    quota: dict[int, int]
    """How many of each are taken of one style."""
    spare: list[tuple[Wish, str]] = field(default_factory=list)
    """What was written beyond that."""

    def wishes(self, turn: int) -> list[Wish]:
        """Return what is wanted in a style; both entries together in another one, so that few queries have many."""
        found = [Wish((self.entry,), STYLES[turn])] if self.missing[1] else []
        if self.missing[2]:
            partner = self.partners[turn % len(self.partners)]
            found.append(Wish((self.entry, partner), STYLES[(turn + 2) % len(STYLES)]))
        return found

    def take(self, wish: Wish, text: str, sieve: Sieve) -> Iterator[str]:
        """Yield the new queries of a text, up to the quota; the others are spare."""
        kind, took = len(wish.entries), 0
        for query in read_requests(text):
            if took == self.quota[kind] or not self.missing[kind]:
                self.spare.append((wish, query))
            elif sieve.passes(query):
                took += 1
                self.missing[kind] -= 1
                yield query

    def take_spare(self, sieve: Sieve) -> Iterator[tuple[Wish, str]]:
        """Yield what was written beyond the quota, as long as something is missing."""
        left = sum(self.missing.values())
        for wish, query in self.spare:
            if left and sieve.passes(query):
                left -= 1
                yield wish, query


def _need(entry: Entry, count: int, others: Sequence[Entry], seed: int) -> _Need:
    others = [one for one in others if one != entry]
    partners = random.Random(f"{seed}/{entry.number}").sample(others, min(len(STYLES), len(others)))
    composed = count // COMPOSED if partners else 0
    missing = {1: count - composed, 2: composed}
    return _Need(entry, partners, missing, {1: -(-missing[1] // WORDINGS), 2: -(-composed // 2)})


def _lead(template: str) -> str:
    """Return what a template says first outside its lists."""
    return next((entry.text for entry in read_entries(template) if entry.group is None), "")[:LEAD]


def generate(
    template: str, wanted: Sequence[tuple[Entry, int]], like: Sequence[str], write: Write, sieve: Sieve, seed: int
) -> Iterator[tuple[tuple[Entry, ...], str]]:
    """Yield new queries, each with what it is for: an entry, and the one that it is asked with, if any.

    `wanted` says how many each entry still lacks. In each style all entries that lack queries are shown once, alone and
    with another one; a third of an entry's queries are of both. What was written beyond an entry's share of a style is
    taken last. After that an entry has what it has.
    """
    lead, entries = _lead(template), [entry for entry, _ in wanted]
    others = entries if len(entries) > 1 else read_entries(template)
    needs = [_need(entry, count, others, seed) for entry, count in wanted]
    for turn in range(len(STYLES)):
        shown = list(islice(cycle(like), turn * SHOWN, turn * SHOWN + min(SHOWN, len(like))))
        wishes = [(need, wish) for need in needs for wish in need.wishes(turn)]
        texts = write([wish.request(lead, shown) for _, wish in wishes])
        for (need, wish), text in zip(wishes, texts, strict=True):
            yield from ((wish.entries, query) for query in need.take(wish, text, sieve))
    for need in needs:
        yield from ((wish.entries, query) for wish, query in need.take_spare(sieve))
