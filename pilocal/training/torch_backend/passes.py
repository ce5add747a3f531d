"""Which rows of a step each process computes, and in which passes through the model.

Where the base is sharded, a layer's weights are gathered from all processes whenever one computes with it. All have to
make the same passes then: one that has no rows for a pass computes a row that counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from pilocal.prompt.tokens import Row
from pilocal.training.row_order import by_weight, parted, shared_prefix

SHORTEST_PREFIX = 16
"""Fewer tokens than these are quicker read in every row than in a pass of their own through all layers."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows that run through the model together."""

    rows: list[Row]
    count: float
    """What their summed loss is divided by; infinite where they only fill a pass."""
    prefix: int = 0
    """How many tokens that they begin with are computed once."""


def passes(rows: Sequence[Row], processes: int, accumulate: int, *, share: bool, alike: bool) -> list[list[Pass]]:
    """Return each process's passes of a step.

    Every group of rows is dealt to the processes, and what one has computed in `accumulate` parts of nearly equal
    numbers of rows. The loss of a group's completion tokens is divided by what they count together, over the group's
    share of the rows. With `share` what a pass's rows begin with is computed once. If `alike`, all processes have as
    many passes, and in each either all compute a beginning once or none does.
    """
    found: list[list[Pass]] = [[] for _ in range(processes)]
    for group in parted(rows):
        count = trained(group) * (len(rows) / len(group))
        dealt = [_parts(some, accumulate) for some in _dealt(group, processes)]
        if alike:
            for turn in _filled([[Pass(part, count) for part in parts] for parts in dealt], group):
                for own, made in zip(found, _alike(turn, share), strict=True):
                    own.append(made)
        else:
            for own, parts in zip(found, dealt, strict=True):
                own += [Pass(part, count, prefix_of(part) if share else 0) for part in parts]
    return found


def trained(rows: Sequence[Row]) -> float:
    """Return what all completion tokens count together: their number where each counts 1."""
    return sum(row.weight * len(row.completion) for row in rows)


def prefix_of(rows: Sequence[Row]) -> int:
    """Return how many tokens rows begin with together, 0 where that is not worth a pass of its own."""
    return _prefix(rows) if len(rows) > 1 else 0


def _filled(dealt: Sequence[Sequence[Pass]], group: Sequence[Row]) -> list[tuple[Pass, ...]]:
    """Return, for each turn, every process's pass; who has none computes the group's shortest row for nothing."""
    filler = Pass([min(group, key=lambda row: len(row.tokens))], math.inf)
    return list(zip_longest(*dealt, fillvalue=filler))


def _alike(turn: Sequence[Pass], share: bool) -> list[Pass]:
    """Return the passes that processes make at the same time, with beginnings where several rows have one."""
    prefixes = [_prefix(each.rows) for each in turn]
    if not share or not all(prefixes) or all(len(each.rows) == 1 for each in turn):
        return list(turn)
    return [replace(each, prefix=prefix) for each, prefix in zip(turn, prefixes, strict=True)]


def _prefix(rows: Sequence[Row]) -> int:
    """Return how many tokens rows begin with together, if those are worth a pass of their own."""
    prefix = shared_prefix(rows)
    return prefix if prefix >= SHORTEST_PREFIX else 0


def _dealt(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Deal rows into `count` parts of nearly equal numbers of rows."""
    return [[rows[i] for i in part] for part in np.array_split(np.arange(len(rows)), count)]


def _parts(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Deal the rows of each weight, which are of one kind and of like length, into at most `count` parts."""
    return [part for kind in by_weight(rows) for part in _dealt(kind, count) if part]
