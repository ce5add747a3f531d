"""Data-parallel training: processes on one machine or several that compute shares of the same batches.

`mlx.launch` starts the same command on every host; rank 0 leads. It alone reads the rows, decides what comes next and
writes; the others follow its orders with the base and the task's settings that they have themselves. What a batch is
does not depend on how many compute it. Orders and rows travel as sums to which the others add nothing, which every
backend of mx.distributed (ring, MPI, NCCL, JACCL) can do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from pilocal.errors import TrainingError
from pilocal.prompt.tokens import Row
from pilocal.training.mlx.batches import Batch, make_batch

RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What mlx.launch and MPI tell a process about itself."""


class Kind(IntEnum):
    """What the leader can order."""

    END = 0
    FIT = 1
    STEP = 2
    VALIDATE = 3


class Order(NamedTuple):
    """What the leader wants done next."""

    kind: Kind
    step: int = 0
    """The step's number in the whole run, from 0."""
    rate: float = 0.0
    """The step's learning rate."""
    batch: Batch | None = None
    """The whole batch, of which each rank takes its part."""


def launched_rank() -> int | None:
    """Return this process's rank among those that were started together, or None when it was started alone."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file() and not Path(hosts).read_text(encoding="utf-8").strip():
        return None  # `mlx.launch -n 1`
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), None)


class Team:
    """The processes of a training; `Team()` is one process alone, for which nothing is ever sent."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank: int = group.rank() if group else 0
        self.size: int = group.size() if group else 1
        self.busy = False
        """Whether an order is being carried out, so that no other may be given."""

    @classmethod
    def join(cls) -> Team:
        """Meet the processes that were launched with this one; raises TrainingError when they do not come."""
        try:
            return cls(mx.distributed.init(strict=True))
        except RuntimeError as error:
            fix = "see that every host of `mlx.launch` runs this command and reaches the others"
            raise TrainingError(
                "mlx.distributed", "the other processes were not met", got=str(error), fix=fix
            ) from None

    @contextmanager
    def order(self, kind: Kind, **details: Any) -> Iterator[None]:
        """Tell every other process what the leader does next, in the block; `details` are those of an Order."""
        self.busy = True
        if self.size > 1:
            self._exchange(Order(kind, **details))
        yield
        self.busy = False

    def orders(self) -> Iterator[Order]:
        """Yield the leader's orders until it ends the training."""
        while (order := self._exchange(None)).kind != Kind.END:
            yield order

    def end(self) -> None:
        """Send the others home, unless they are in the middle of something, where they will notice by themselves."""
        if self.size > 1 and not self.busy:
            self._exchange(Order(Kind.END))

    def part(self, batch: Batch) -> Batch | None:
        """Return this process's share of a batch, or None when there are fewer rows than processes."""
        if self.size == 1:
            return batch
        parts = batch.parts(self.size)
        return parts[self.rank] if self.rank < len(parts) else None

    def sum(self, tree: Any) -> Any:
        """Add up what every process has; the tree's arrays must have the same shapes everywhere."""
        if self.size == 1:
            return tree
        names, arrays = zip(*tree_flatten(tree), strict=True)
        flat = mx.concatenate([array.flatten() for array in arrays])
        mx.eval(flat)  # what fails here fails on its own
        ends = list(accumulate(array.size for array in arrays))
        parts = mx.split(self._sum(flat), ends[:-1])
        summed = [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
        return tree_unflatten(list(zip(names, summed, strict=True)))

    def copy(self, tree: Any) -> Any:
        """Return the leader's arrays; each process gives arrays of the same shapes."""
        if self.size == 1:
            return tree
        mine = tree if self.rank == 0 else tree_map(mx.zeros_like, tree)
        copied = tree_map(self._sum, mine)
        return tree if self.rank == 0 else copied

    def check_same(self, what: Mapping[str, str]) -> None:
        """Raise TrainingError, in every process, unless all name the same things; `what` has SHA-256 as hex."""
        for name, value in what.items() if self.size > 1 else ():
            words = np.frombuffer(bytes.fromhex(value), dtype=np.int32)
            leaders = np.array(self._sum(mx.array(words if self.rank == 0 else np.zeros_like(words))))
            others = np.array(self._sum(mx.array(int(not np.array_equal(words, leaders))))).item()
            if others:
                fix = f"make {name} the same everywhere"
                raise TrainingError(
                    "mlx.distributed", f"{name} differs between hosts", got=f"{others} of them", fix=fix
                )

    def _exchange(self, order: Order | None) -> Order:
        """Give an order (the leader) or get it."""
        rows = list(order.batch.rows) if order and order.batch else []
        head = np.zeros(6, dtype=np.int32)
        body = np.array([n for row in rows for n in (len(row.tokens), row.offset, *row.tokens)], dtype=np.int32)
        if order:
            head[:3] = order.kind, order.step, body.size
            head[3:4] = np.array([order.rate], dtype=np.float32).view(np.int32)
            if order.batch:
                head[4:] = order.batch.prefix_P.size, order.batch.share
        head = np.array(self._sum(mx.array(head)))
        kind, step, size, _, prefix, share = head.tolist()
        if size:
            body = np.array(self._sum(mx.array(body if order else np.zeros(size, dtype=np.int32))))
        batch = make_batch(_unpack(body.tolist()), prefix, share=bool(share)) if size else None
        return Order(Kind(kind), step, float(head[3:4].view(np.float32)[0]), batch)

    def _sum(self, array: mx.array) -> mx.array:
        try:
            summed = mx.distributed.all_sum(array, group=self.group)
            mx.eval(summed)
        except RuntimeError as error:
            self.busy = True  # after a fault nothing more may be sent, it would hang
            what, fix = "another process of this training is gone", "run the same command again; nothing saved is lost"
            raise TrainingError(f"rank {self.rank} of {self.size}", what, got=str(error), fix=fix) from None
        return summed


def _unpack(numbers: Sequence[int]) -> list[Row]:
    rows, at = [], 0
    while at < len(numbers):
        length, offset = numbers[at : at + 2]
        at += 2 + length
        rows.append(Row(tuple(numbers[at - length : at]), offset))
    return rows
