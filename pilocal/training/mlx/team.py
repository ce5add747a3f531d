"""Data-parallel training in MLX: processes on one machine or several that `mlx.launch` started together.

Orders and rows travel as sums to which the others add nothing, which every backend of mx.distributed (ring, MPI, NCCL,
JACCL) can do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from numpy.typing import NDArray

from pilocal.errors import TrainingError
from pilocal.prompt.soft import Soft
from pilocal.prompt.tokens import Row
from pilocal.training.mlx.batches import Batch
from pilocal.training.team import Kind, Order, Team

RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What mlx.launch and MPI tell a process about itself."""


def launched_rank() -> int | None:
    """Return this process's rank among those that were started together, or None when it was started alone."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file() and not Path(hosts).read_text(encoding="utf-8").strip():
        return None  # `mlx.launch -n 1`
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), None)


def leader_address() -> str | None:
    """Return the address of the first process, as mlx.launch tells it; None where MPI started it."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file():
        place = str(json.loads(Path(hosts).read_text(encoding="utf-8"))[0][0])
    else:
        place = os.environ.get("MLX_JACCL_COORDINATOR", "")
    return place.rpartition(":")[0].strip("[]") or os.environ.get("NCCL_HOST_IP")


class MlxTeam(Team):
    """The processes of a training; `MlxTeam()` is one process alone."""

    def __init__(self, group: Any = None) -> None:
        super().__init__()
        self.group = group
        if group:
            self.rank, self.size = group.rank(), group.size()

    @classmethod
    def join(cls) -> MlxTeam:
        """Meet the processes that were launched with this one; raises TrainingError when they do not come."""
        try:
            team = cls(mx.distributed.init(strict=True))
        except RuntimeError as error:
            fix = "see that every host of `mlx.launch` runs this command and reaches the others"
            raise TrainingError(
                "mlx.distributed", "the other processes were not met", got=str(error), fix=fix
            ) from None
        team.watch(leader_address())
        return team

    def part(self, batch: Batch) -> Batch | None:
        """Return this process's share of a batch, or None when there are fewer rows than processes."""
        if self.size == 1:
            return batch
        parts = batch.dealt(self.size)
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

    def numbers(self, mine: Sequence[int]) -> Sequence[int]:
        """Return the leader's numbers."""
        found: list[int] = np.array(self.copy(mx.array(list(mine), dtype=mx.int32))).tolist()
        return found

    def exchange(self, order: Order | None) -> Order:
        """Give an order (the leader) or get it."""
        head = np.zeros(5, dtype=np.int32)
        rows = order.rows if order else ()
        body = np.concatenate([np.zeros(0, dtype=np.int32), *(part for row in rows for part in _pack(row))])
        if order:
            head[:4] = order.kind, order.step, body.size, order.prefix
            head[4:] = np.array([order.rate], dtype=np.float32).view(np.int32)
        head = np.array(self._sum(mx.array(head)))
        kind, step, size, prefix, _ = head.tolist()
        if size:
            body = np.array(self._sum(mx.array(body if order else np.zeros(size, dtype=np.int32))))
        rows = _unpack(body) if size else ()
        return Order(Kind(kind), step, float(head[4:].view(np.float32)[0]), rows, prefix)

    def _sum(self, array: mx.array) -> mx.array:
        try:
            summed = mx.distributed.all_sum(array, group=self.group)
            mx.eval(summed)
        except RuntimeError as error:
            self.busy = True  # after a fault nothing more may be sent, it would hang
            what, fix = "another process of this training is gone", "run the same command again; nothing saved is lost"
            raise TrainingError(f"rank {self.rank} of {self.size}", what, got=str(error), fix=fix) from None
        return summed


def _pack(row: Row) -> Iterator[NDArray[np.int32]]:
    """Yield a row as whole numbers; the bits of floats are taken for some. What a model said has a count below 0."""
    count = 0 if row.soft is None else row.soft.ids_CK.shape[1]
    gaps = [place for gap in row.gaps for place in gap]
    likely = -count if row.is_said else count
    yield np.array([len(row.tokens), row.offset, likely, len(row.gaps)], dtype=np.int32)
    yield np.array([row.weight], dtype=np.float64).view(np.int32)
    yield np.array([*gaps, *row.tokens], dtype=np.int32)
    if row.soft is not None:
        for part in (row.soft.ids_CK, row.soft.log_probs_CK, row.soft.tail_C):
            yield np.ascontiguousarray(part).view(np.int32).ravel()


def _unpack(numbers: NDArray[np.int32]) -> tuple[Row, ...]:
    rows, at = list[Row](), 0

    def take(count: int) -> NDArray[np.int32]:
        nonlocal at
        at += count
        return numbers[at - count : at]

    while at < len(numbers):
        length, offset, count, passages = take(4).tolist()
        weight = float(np.array(take(2)).view(np.float64)[0])
        gaps = tuple((begin, end) for begin, end in take(2 * passages).reshape(passages, 2).tolist())
        row = Row(tuple(take(length).tolist()), offset, gaps=gaps, weight=weight)
        if count:
            size, likely = len(row.completion), abs(count)
            ids, log_probs = (take(size * likely).reshape(size, likely) for _ in range(2))
            soft = Soft(ids, log_probs.view(np.float32), take(size).view(np.float32), reference=count > 0)
            row = row._replace(soft=soft)
        rows.append(row)
    return tuple(rows)
