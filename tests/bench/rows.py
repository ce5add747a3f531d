"""Rows of random tokens: speed and memory depend on their lengths alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pilocal.prompt.tokens import Row


class Lengths(NamedTuple):
    """The lengths of a row's parts, in tokens; the template is the same in every row, the rest is the row's own."""

    template: int = 1000
    shots: int = 5
    shot: int = 40
    query: int = 40
    answer: int = 30

    @property
    def row(self) -> int:
        """The whole row."""
        return self.template + self.shots * self.shot + self.query + self.answer


def make_rows(lengths: Lengths, count: int, vocabulary: int, families: int = 0) -> list[Row]:
    """Return rows of random tokens; with `families` the shots are those of one of so many."""
    rng = np.random.default_rng(0)

    def some(length: int) -> list[int]:
        tokens: list[int] = rng.integers(3, vocabulary, length).tolist()
        return tokens

    template = some(lengths.template)
    shots = [some(lengths.shots * lengths.shot) for _ in range(families or count)]
    own = lengths.query + lengths.answer
    return [Row((*template, *shots[i % len(shots)], *some(own)), lengths.row - lengths.answer) for i in range(count)]
