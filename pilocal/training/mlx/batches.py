"""Batches: the rows of a step (see `pilocal.training.row_order`) laid out so that nothing is computed twice.

A batch is a tree of two levels: the tokens that all rows of the stage begin with (the template), then the tokens that
groups of its rows go on with (their shots), then what each row has of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pilocal.prompt.tokens import Row
from pilocal.training.memory import Load
from pilocal.training.row_order import NARROWEST, RowOrder, by_weight

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

SHAPES_PER_OCTAVE = 16
"""Widths between one power of two and the next: bounds both the number of different shapes and the padding."""

WORTH = 0.9
"""Rows are computed in groups when that leaves at most this share of their tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of which all begin with the same P tokens and groups go on with the same S; padded on the right."""

    rows: tuple[Row, ...]
    prefix_P: Ints
    """The tokens that all rows begin with; computed once for all of them."""
    shots_GS: Ints
    """The tokens that the rows of each group go on with, computed once a group; (0, 0) where groups do not pay."""
    groups_B: Ints
    """The group of each row; empty where there are none."""
    tokens_BT: Ints
    """What follows in each row, without the last token."""
    starts_B: Ints
    """Indices into T of the tokens that predict each row's first completion token."""
    targets_BC: Ints
    """The completion tokens, and what stands between them."""
    weights_BC: Floats
    """The row's weight where a target is learned, 0 where it is not, or padding."""
    share: bool
    """Whether anything may be computed for several rows at once."""
    soft: tuple[Ints, Floats, Floats] | None = None
    """A teacher's likeliest tokens and their log-probabilities (B, C, K), and that of all others (B, C)."""

    @property
    def is_said(self) -> bool:
        """Whether the completions are what a model said, and no reference answers."""
        return self.rows[0].is_said

    @property
    def trained_tokens(self) -> int:
        """Number of completion tokens."""
        return sum(len(row.completion) for row in self.rows)

    @property
    def weight(self) -> float:
        """What all completion tokens count together."""
        return sum(row.weight * len(row.completion) for row in self.rows)

    @property
    def computed_tokens(self) -> int:
        """Number of tokens that run through the model, padding included."""
        return self.prefix_P.size + self.shots_GS.size + self.tokens_BT.size

    @property
    def padding(self) -> int:
        """Number of the computed tokens that stand for nothing."""
        shared = self.prefix_P.size + self.shots_GS.shape[1]
        own = sum(len(row.tokens) - 1 - shared for row in self.rows)
        return int(self.tokens_BT.size - own)

    def arrays(self) -> tuple[mx.array, ...]:
        """Return everything but the rows for MLX, in the order in which `loss.completion_loss` takes it."""
        parts = (self.prefix_P, self.shots_GS, self.groups_B, self.tokens_BT)
        known = (*parts, self.starts_B, self.targets_BC, self.weights_BC, *(self.soft or ()))
        return tuple(mx.array(part) for part in known)

    def dealt(self, count: int) -> list[Batch]:
        """Deal the rows into at most `count` batches of nearly equal numbers of rows."""
        if count == 1:
            return [self]
        dealt = np.array_split(np.arange(len(self.rows)), count)
        return [self._some([self.rows[i] for i in part]) for part in dealt if part.size]

    def parts(self, count: int) -> list[Batch]:
        """Return the batches in which the rows are computed: those of each weight dealt into at most `count`.

        Rows of another weight are of another kind, and of another length.
        """
        kinds = by_weight(self.rows)
        if len(kinds) == 1:
            return self.dealt(count)
        return [part for kind in kinds for part in self._some(kind).dealt(count)]

    def loads(self, count: int) -> list[Load]:
        """Return what these parts compute, the largest first."""
        return sorted((load(part) for part in self.parts(count)), key=lambda load: -load.rows * load.own)

    def _some(self, rows: Sequence[Row]) -> Batch:
        return make_batch(rows, self.prefix_P.size, share=self.share)


def load(batch: Batch) -> Load:
    """Return what a batch computes."""
    rows, own = batch.tokens_BT.shape
    groups, shots = batch.shots_GS.shape
    completion = batch.targets_BC.shape[1]
    return Load(prefix=batch.prefix_P.size, groups=groups, shots=shots, rows=rows, own=own, completion=completion)


def group_prefix(rows: Sequence[Row], prefix: int) -> int:
    """Return how many tokens behind the `prefix` are best computed once for each group of rows that has the same.

    0 where it does not pay. Each row keeps at least one prompt token of its own.

    >>> rows = [Row((1, *[shots] * 64, query, 7, 8), 67) for shots in (2, 3) for query in (4, 5, 6)]
    >>> group_prefix(rows, 1)
    64
    """
    longest = max(len(row.tokens) for row in rows) - 1 - prefix
    best, fewest = 0, WORTH * len(rows) * longest
    for shared in range(NARROWEST, min(row.offset for row in rows) - prefix, NARROWEST):
        width = round_up(shared)
        if width != shared:
            continue
        groups = len({row.tokens[prefix : prefix + shared] for row in rows})
        computed = groups * shared + len(rows) * (longest - shared)
        if computed <= fewest:
            best, fewest = shared, computed
        if groups == len(rows):
            break
    return best


def make_batch(rows: Sequence[Row], prefix: int, *, share: bool = True) -> Batch:
    """Lay rows that share their first `prefix` tokens side by side; without `share` each of them whole."""
    prefix, group = (prefix, group_prefix(rows, prefix)) if share else (0, 0)
    own = prefix + group
    width = round_up(max(len(row.tokens) for row in rows) - 1 - own)
    completion = round_up(max(len(row.tokens) - row.offset for row in rows))
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    starts = np.array([row.offset - 1 - own for row in rows], dtype=np.int32)
    targets = np.zeros((len(rows), completion), dtype=np.int32)
    weights = np.zeros((len(rows), completion), dtype=np.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens) - 1 - own] = row.tokens[own:-1]
        targets[i, : len(row.tokens) - row.offset] = row.tokens[row.offset :]
        weights[i, row.places] = row.weight
    shots = list(dict.fromkeys(row.tokens[prefix:own] for row in rows)) if group else []
    return Batch(
        tuple(rows),
        np.array(rows[0].tokens[:prefix], dtype=np.int32),
        np.array(shots, dtype=np.int32).reshape(len(shots), group),
        np.array([shots.index(row.tokens[prefix:own]) for row in rows] if group else [], dtype=np.int32),
        tokens,
        starts,
        targets,
        weights,
        share,
        _soft(rows, completion),
    )


def _soft(rows: Sequence[Row], completion: int) -> tuple[Ints, Floats, Floats] | None:
    """Lay what teachers say about the rows side by side; padding is a token of which they are sure."""
    said = [(row.places, row.soft) for row in rows if row.soft is not None]
    if len(said) < len(rows):
        return None
    count = max(soft.ids_CK.shape[1] for _, soft in said)
    ids = np.zeros((len(rows), completion, count), dtype=np.int32)
    log_probs = np.zeros((len(rows), completion, count), dtype=np.float32)
    tails = np.zeros((len(rows), completion), dtype=np.float32)
    for i, (places, soft) in enumerate(said):
        ids[i, places] = soft.ids_CK
        log_probs[i, places] = soft.log_probs_CK
        tails[i, places] = soft.tail_C
    return ids, log_probs, tails


class Batches:
    """All batches of one stage."""

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: Sequence[int], *, share: bool = True) -> None:
        """Find what `rows` share; `seed` (any number of integers) decides every order.

        Without `share` every row is computed whole.
        """
        self.rows = rows
        self.share = share
        self._order = RowOrder(rows, batch_size, seed, share=share)
        self.prefix, self.per_epoch = self._order.prefix, self._order.per_epoch

    @property
    def prefix_tokens(self) -> tuple[int, ...]:
        """The tokens that all rows begin with."""
        return self.rows[0].tokens[: self.prefix]

    def at(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 within the stage; epochs follow each other."""
        return self._batch(self._order.rows_at(step))

    def in_order(self) -> list[Batch]:
        """Return every row once, for validation."""
        return [self._batch(rows) for rows in self._order.in_order()]

    def _batch(self, rows: Sequence[Row]) -> Batch:
        return make_batch(rows, self.prefix, share=self.share)


def round_up(length: int) -> int:
    """Return the next width that batches have: a multiple of 8, and of a sixteenth of the power of two below.

    >>> [round_up(length) for length in (1, 17, 130, 300, 1025)]
    [8, 24, 136, 304, 1088]
    """
    step = max(NARROWEST, (1 << (length - 1).bit_length()) // 2 // SHAPES_PER_OCTAVE)
    return -(-length // step) * step
