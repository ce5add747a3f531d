"""Batches: rows of like length side by side, every row once an epoch, in an order that a step's number decides.

Which batch a step sees is a pure function of the seed, the stage and the step, so a resumed run needs no memory of
where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
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
    starts_B: Ints
    """Indices into T of the tokens that predict each row's first completion token."""
    targets_BC: Ints
    """The completion tokens."""
    weights_BC: Floats
    """1 where a target is real, 0 where it is padding."""
    lengths_B: Ints
    """Number of tokens of each whole row, prefix and completion included."""

    @property
    def trained_tokens(self) -> int:
        """Number of completion tokens."""
        return int(self.weights_BC.sum())

    @property
    def rendered_tokens(self) -> int:
        """Number of tokens of all rows, each counted whole, as a trainer without sharing would compute them."""
        return int(self.lengths_B.sum())

    @property
    def padding(self) -> float:
        """Share of `tokens_BT` that stands for nothing."""
        return 1 - float((self.lengths_B - 1 - self.prefix_P.size).sum()) / self.tokens_BT.size

    def arrays(self) -> tuple[mx.array, ...]:
        """Return prefix, tokens, starts, targets and weights for MLX, as `loss.completion_loss` takes them."""
        parts = (self.prefix_P, self.tokens_BT, self.starts_B, self.targets_BC, self.weights_BC)
        return tuple(mx.array(part) for part in parts)

    def parts(self, count: int) -> list[Batch]:
        """Deal the rows into at most `count` batches of nearly equal numbers of rows."""
        dealt = [part for part in np.array_split(np.arange(len(self.tokens_BT)), count) if part.size]
        return [
            Batch(
                self.prefix_P,
                self.tokens_BT[i],
                self.starts_B[i],
                self.targets_BC[i],
                self.weights_BC[i],
                self.lengths_B[i],
            )
            for i in dealt
        ]


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
    starts = np.array([row.offset - 1 - prefix for row in rows], dtype=np.int32)
    targets = np.zeros((len(rows), completion), dtype=np.int32)
    weights = np.zeros((len(rows), completion), dtype=np.float32)
    for i, row in enumerate(rows):
        own = row.tokens[prefix:-1]
        count = len(row.completion)
        tokens[i, : len(own)] = own
        targets[i, :count] = row.completion
        weights[i, :count] = 1
    lengths = np.array([len(row.tokens) for row in rows], dtype=np.int32)
    return Batch(np.array(rows[0].tokens[:prefix], dtype=np.int32), tokens, starts, targets, weights, lengths)


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
        return make_batch(self.rows_at(step), self.prefix)

    def rows_at(self, step: int) -> list[Row]:
        """Return the rows of a step."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return [self.rows[i] for i in self._order[number]]

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
