"""The order of the rows: those that share much, and are of like length, side by side; every row once an epoch.

Which rows a step sees is a pure function of the seed, the stage and the step, so a resumed run needs no memory of where
it was, and every backend trains on the same rows in the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np

from pilocal.prompt.tokens import Row, common_prefix
from pilocal.task import Training

NARROWEST = 8
"""Widths of batches are multiples of this at least."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows of another kind, of which every step of a stage has some."""

    rows: Sequence[Row]
    count: int
    """How many a step has."""

    def at(self, step: int, seed: Sequence[int]) -> list[Row]:
        """Return the rows of a step, counted from 0 within the stage; every row once an epoch."""
        size, numbers = len(self.rows), range(step * self.count, (step + 1) * self.count)
        epochs = {number // size for number in numbers}
        orders = {epoch: np.random.default_rng((*seed, epoch)).permutation(size) for epoch in epochs}
        return [self.rows[int(orders[number // size][number % size])] for number in numbers]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's work."""

    number: int
    """The stage's, in the schedule."""
    train: Sequence[Row]
    valid: Sequence[Row]
    steps: int
    folder: Path
    """Where metrics.jsonl, the checkpoints and the adapter after this stage go."""
    generation: Sequence[Row] = ()
    """What writes the template, beside the answers of `train`."""
    beside: tuple[Stream, ...] = ()
    """What every step has beside these."""

    def order(self, training: Training, *, share: bool = True) -> Ordering:
        """Return the order of what is trained on; `share` is as for `RowOrder`."""
        if self.generation:
            return PairedOrder(self, training, share=share)
        return RowOrder(self.train, training.batch_size, (training.seed, self.number), share=share, beside=self.beside)

    def step_tokens(self, training: Training, *, share: bool = True) -> float:
        """Return about how many tokens a step computes: what all rows share once, and the rest of its rows.

        Shots that only some rows share are counted in every row.
        """
        own = [*self.train, *self.generation]
        alike = [row for stream in self.beside for row in stream.rows if not row.is_said]
        prefix = shared_prefix([*own, *alike]) if share else 0
        counts = [(stream.rows, stream.count) for stream in self.beside]
        counts.append((own, training.batch_size - sum(stream.count for stream in self.beside)))
        return prefix + sum(count * (fmean(len(row.tokens) for row in rows) - prefix) for rows, count in counts)


class Ordering(Protocol):
    """Which rows each step has."""

    prefix: int
    """How many leading tokens all rows share, but for what a model said."""
    per_epoch: int
    """After how many steps every row has been seen."""

    def rows_at(self, step: int) -> list[Row]:
        """Return the rows of a step, counted from 0 within the stage; epochs follow each other."""


class PairedOrder:
    """Every step has answers and rows that write the template.

    The loss is the mean over the tokens of each kind, by its share. What a model said beside them is apart from both.
    """

    def __init__(self, plan: StagePlan, training: Training, *, share: bool = True) -> None:
        """Give answers the share genpi_lambda, of the loss and of the rows of a step, and the others the rest."""
        size, part, seed = training.batch_size, training.genpi_lambda, (training.seed, plan.number)
        said = sum(stream.count for stream in plan.beside if stream.rows[0].is_said)
        room = size - 1 - sum(stream.count for stream in plan.beside)
        count = min(room, max(1, round((1 - part) * (size - said))))
        alike = [row for stream in plan.beside for row in stream.rows if not row.is_said]
        self.prefix = shared_prefix([*plan.train, *alike, *plan.generation]) if share else 0
        self._share = part
        self._answers = RowOrder(plan.train, size - count, seed, share=share, beside=plan.beside)
        self._others = RowOrder(plan.generation, count, (*seed, 1), share=share)
        self.per_epoch = max(self._answers.per_epoch, self._others.per_epoch)

    def rows_at(self, step: int) -> list[Row]:
        """Return the rows of a step: answers, what writes the template, what a model said.

        A token counts 1 in the mean.
        """
        rows = self._answers.rows_at(step)
        kinds = ([row for row in rows if not row.is_said], self._others.rows_at(step))
        tokens = [sum(len(row.completion) for row in kind) for kind in kinds]
        weighed = [
            row._replace(weight=part * sum(tokens) / own)
            for part, kind, own in zip((self._share, 1 - self._share), kinds, tokens, strict=True)
            for row in kind
        ]
        return weighed + [row for row in rows if row.is_said]


class RowOrder:
    """Which rows each step of a stage has."""

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int,
        seed: Sequence[int],
        *,
        share: bool = True,
        beside: Sequence[Stream] = (),
    ) -> None:
        """Find what `rows` share; `seed` (any number of integers) decides every order.

        Without `share` (a model that cannot compute for several rows at once) their common beginning counts for
        nothing. The rows that each step has of the streams `beside` are part of `batch_size`; they come last.
        """
        self.rows = rows
        self.batch_size = batch_size - sum(stream.count for stream in beside)
        self.seed = tuple(seed)
        self.beside = tuple(beside)
        alike = [row for stream in beside for row in stream.rows if not row.is_said]
        self.prefix = shared_prefix([*rows, *alike]) if share else 0
        self.per_epoch = -(-len(rows) // self.batch_size)
        self._relatives = _relatives(rows, self.prefix)
        self._epoch = -1
        self._order: list[list[int]] = []

    def rows_at(self, step: int) -> list[Row]:
        """Return the rows of a step, counted from 0 within the stage; epochs follow each other."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        others = [stream.at(step, (*self.seed, nth)) for nth, stream in enumerate(self.beside, 1)]
        return [self.rows[i] for i in self._order[number]] + [row for some in others for row in some]

    def in_order(self) -> list[list[Row]]:
        """Return every row once, for validation."""
        order = self._side_by_side(range(len(self.rows)))
        return [[self.rows[i] for i in part] for part in _chunks(order, self.batch_size)]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((*self.seed, epoch))
        shuffled = rng.permutation(len(self.rows)).tolist()
        batches: list[list[int]] = []
        # Rows are laid side by side within pools of 16 batches, which keep enough chance in who meets whom.
        for pool in _chunks(shuffled, 16 * self.batch_size):
            batches += _chunks(self._side_by_side(pool), self.batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _side_by_side(self, numbers: Sequence[int]) -> list[int]:
        """Order rows so that relatives meet, and rows of like length.

        Relatives come in parts of half a batch, and no part follows another of its own family unless all that is left
        is of that family: rows with the same shots tend to have the same answer, so no batch should hold them alone.
        """
        families: dict[int, list[int]] = {}
        for i in numbers:
            families.setdefault(self._relatives[i], []).append(i)
        waiting = [_chunks(family, max(1, self.batch_size // 2)) for family in families.values()]

        def place(number: int) -> tuple[int, int, int]:
            parts = waiting[number]
            return -len(parts), max(len(self.rows[i].tokens) for i in parts[-1]), number

        order: list[int] = []
        heap = [place(number) for number in range(len(waiting))]
        heapq.heapify(heap)
        held: tuple[int, int, int] | None = None
        while heap:
            *_, number = heapq.heappop(heap)
            order += waiting[number].pop()
            if held:
                heapq.heappush(heap, held)
            held = place(number) if waiting[number] else None
        return order + [i for part in waiting[held[-1]] for i in part] if held else order


def parted(rows: Sequence[Row]) -> list[list[Row]]:
    """Return a step's rows in the groups that are computed apart: those with references, then what a model said.

    Rows of the first group begin as all rows of the stage do. The loss of a step is the mean over the completion tokens
    of each group, weighted by the groups' numbers of rows: long texts that a model said do not drown short answers.

    >>> [len(group) for group in parted([Row((1, 2), 1), Row((1, 3), 1)])]
    [2]
    """
    groups = [[row for row in rows if not row.is_said], [row for row in rows if row.is_said]]
    return [group for group in groups if group]


def by_weight(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in runs of one weight each: they are of one kind then, and of like length."""
    return [list(some) for _, some in groupby(rows, key=lambda row: row.weight)]


def shared_prefix(rows: Sequence[Row]) -> int:
    """Return how many leading tokens all rows share, leaving each at least one prompt token of its own.

    >>> shared_prefix([Row((1, 2, 3, 4), 3), Row((1, 2, 5, 6), 3)])
    2
    """
    return max(common_prefix([row.tokens[: row.offset] for row in rows]), 0)


def by_completions(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """Cut rows into parts of at most so many completion tokens, or of one row that has more.

    >>> [len(part) for part in by_completions([Row((1, 2, 3, 4), 2)] * 5, 4)]
    [2, 2, 1]
    """
    parts: list[list[Row]] = []
    room = 0
    for row in rows:
        if room < len(row.completion) or not parts:
            parts.append([])
            room = most
        parts[-1].append(row)
        room -= len(row.completion)
    return parts


def _relatives(rows: Sequence[Row], prefix: int) -> list[int]:
    """Return the number of each row's family: rows that, one after the other, share half of their own prompt."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    family = [0] * len(rows)
    for last, i in pairwise(order):
        a, b = rows[last], rows[i]
        half = max(NARROWEST, (max(a.offset, b.offset) - prefix + 1) // 2)
        same = a.tokens[prefix : prefix + half] == b.tokens[prefix : prefix + half]
        family[i] = family[last] + (not same or min(a.offset, b.offset) <= prefix + half)
    return family


def _chunks(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
