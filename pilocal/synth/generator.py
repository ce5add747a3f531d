"""Queries from a generator: a model is shown one entry of the template at a time and writes what users would ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilocal.compress.entries import Entry
from pilocal.synth.recombine import key_of

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

LONGEST = 300
"""Characters of a request; what is longer is an explanation."""

ALIKE = 0.9
"""Two queries whose character n-grams have a cosine above this are one."""

MARK = re.compile(r"^\s*(?:[-*+\u2022]|\(?\d{1,3}[.):])\s*|^\s*(?:request|question|user|q)\s*\d*\s*:\s*", re.IGNORECASE)
"""What a model puts before the lines of a list."""

QUOTES = "\"'`\u201c\u201d\u201e\u00ab\u00bb*"

Write = Callable[[Sequence[str]], list[str]]
"""What answers requests, each without a memory of the others."""

Vectors = Callable[[Sequence[str]], NDArray[np.float32]]
"""What makes of texts vectors of length 1."""


@dataclass(frozen=True, slots=True)
class Wish:
    """An entry for which queries are wanted, in one style."""

    entry: Entry
    style: str

    def request(self, template: str, like: Sequence[str]) -> str:
        """Return what the generator is asked; `like` are queries that exist."""
        parts = [
            f"An assistant works by these instructions:\n\n{template}",
            f"One part of them is:\n\n{self.entry.text}",
        ]
        if like:
            parts.append("Users write to it like this:\n\n" + "\n".join(like))
        parts.append(
            f"Write {A_CALL} different things a user could ask that this part answers, as {self.style}. "
            "Do not answer them. Write one per line and nothing else."
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

    def __init__(self, taken: set[str], vectors: Vectors) -> None:
        """Begin with what is taken (`key_of`); what passes is added."""
        self.taken, self._vectors = taken, vectors
        self._seen = vectors(sorted(taken)) if taken else np.zeros((0, 1), dtype=np.float32)

    def passes(self, query: str) -> bool:
        """Tell whether a query is new."""
        key = key_of(query)
        if key in self.taken:
            return False
        vector = self._vectors([key])
        if len(self._seen) and float((self._seen @ vector[0]).max()) > ALIKE:
            return False
        self.taken.add(key)
        self._seen = np.concatenate([self._seen, vector]) if len(self._seen) else vector
        return True


def generate(
    template: str, wanted: Sequence[tuple[Entry, int]], like: Sequence[str], write: Write, sieve: Sieve
) -> Iterator[tuple[Entry, str]]:
    """Yield new queries, each with the entry that it is for; `wanted` says how many each entry still lacks.

    In each style all entries that lack queries are shown once; after the last style an entry has what it has.
    """
    missing = {entry.number: count for entry, count in wanted}
    for turn, style in enumerate(STYLES):
        shown = [like[(turn * SHOWN + i) % len(like)] for i in range(min(SHOWN, len(like)))]
        wishes = [Wish(entry, style) for entry, _ in wanted if missing[entry.number] > 0]
        for wish, text in zip(wishes, write([wish.request(template, shown) for wish in wishes]), strict=True):
            for query in read_requests(text):
                if missing[wish.entry.number] > 0 and sieve.passes(query):
                    missing[wish.entry.number] -= 1
                    yield wish.entry, query
