"""Batches: rows of like length side by side, every row once an epoch, in an order that a step's number decides.

Which batch a step sees is a pure function of the seed, the stage and the step, so a resumed run needs no memory of
where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilocal.tokens import Row

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

WIDTH_STEP = 16
"""Widths are rounded up to multiples of this, which bounds the number of different shapes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows whose first P tokens (`prefix`) are the same, padded on the right."""

    prefix_P: Ints
    """The tokens that all rows begin with; computed once for all of them."""
    tokens_BT: Ints
    """What follows the prefix in each row, without the last token."""
    positions_BC: Ints
    """Indices into T of the tokens that predict a completion token."""
    targets_BC: Ints
    """The completion tokens."""
    weights_BC: Floats
    """1 where a target is real, 0 where it is padding."""

    @property
    def trained_tokens(self) -> int:
        """Number of completion tokens."""
        return int(self.weights_BC.sum())


def common_prefix(rows: Sequence[Row]) -> int:
    """Return how many leading tokens all rows share, leaving each at least one prompt token of its own.

    >>> common_prefix([Row((1, 2, 3, 4), 3), Row((1, 2, 5, 6), 3)])
    2
    """
    first = rows[0].tokens
    limit = min(row.offset for row in rows) - 1
    for row in rows:
        same = next((i for i in range(limit) if row.tokens[i] != first[i]), limit)
        limit = min(limit, same)
    return max(limit, 0)


def make_batch(rows: Sequence[Row], prefix: int) -> Batch:
    """Pad rows that share their first `prefix` tokens into one batch."""
    width = _round_up(max(len(row.tokens) for row in rows) - 1 - prefix)
    completion = _round_up(max(len(row.completion) for row in rows))
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    positions = np.zeros((len(rows), completion), dtype=np.int32)
    targets = np.zeros((len(rows), completion), dtype=np.int32)
    weights = np.zeros((len(rows), completion), dtype=np.float32)
    for i, row in enumerate(rows):
        own = row.tokens[prefix:-1]
        count = len(row.completion)
        tokens[i, : len(own)] = own
        positions[i, :count] = np.arange(row.offset - 1 - prefix, len(row.tokens) - 1 - prefix)
        targets[i, :count] = row.completion
        weights[i, :count] = 1
    return Batch(np.array(rows[0].tokens[:prefix], dtype=np.int32), tokens, positions, targets, weights)


class Batches:
    """All batches of one stage."""

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: Sequence[int]) -> None:
        """Bucket `rows` by length; `seed` (any number of integers) decides every order."""
        self.rows = rows
        self.batch_size = batch_size
        self.seed = tuple(seed)
        self.prefix = common_prefix(rows)
        self.per_epoch = -(-len(rows) // batch_size)
        self._epoch = -1
        self._order: list[list[int]] = []

    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 within the stage; epochs follow each other."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return make_batch([self.rows[i] for i in self._order[number]], self.prefix)

    def in_order(self) -> list[Batch]:
        """Return every row once, shortest first, for validation."""
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i].tokens))
        return [make_batch([self.rows[i] for i in part], self.prefix) for part in _chunks(order, self.batch_size)]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((*self.seed, epoch))
        shuffled = rng.permutation(len(self.rows)).tolist()
        batches: list[list[int]] = []
        # Within pools of 16 batches rows are sorted by length; a pool keeps enough chance in who meets whom.
        for pool in _chunks(shuffled, 16 * self.batch_size):
            batches += _chunks(sorted(pool, key=lambda i: len(self.rows[i].tokens)), self.batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _round_up(length: int) -> int:
    return -(-length // WIDTH_STEP) * WIDTH_STEP
