"""Data-parallel training in PyTorch: processes that `torchrun` or `accelerate launch` started together.

Orders travel over gloo, gradients over NCCL on CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions keep, as a default, whatever group there is when transformers imports it: gloo's threads would then
# outlive `leave` and end the process with an abort.
import torch.distributed.nn

from pilocal.errors import TrainingError
from pilocal.training.backend import shards, torchrun_rank
from pilocal.training.team import Order, Team
from pilocal.training.torch_backend.joint import carry_out

PATIENCE = timedelta(days=30)
"""How long a process waits for the leader, which renders and compresses alone; heartbeats notice one that is gone."""


def local_device(device: str) -> str:
    """Return this process's own device: one CUDA device for each process of a machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and torchrun_rank() is not None else device


class TorchTeam(Team):
    """The processes of a training; `TorchTeam()` is one process alone."""

    sharded = False
    """Whether each process holds a part of the base's every layer, so that all must make the same passes."""
    joint: tuple[Hashable, Any] = (None, None)
    """What all compute with beside a training, and the model itself; see `joint`."""

    @classmethod
    def join(cls, device: str) -> TorchTeam:
        """Meet the processes that were launched with this one.

        Raises TrainingError when they do not come, InputError for what `backend.shards` refuses.
        """
        team = cls()
        if torchrun_rank() is None:
            return team
        sharded = shards() > 1
        try:
            if device == "cuda":
                torch.cuda.set_device(local_device(device))
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            fix = "see that every machine of `torchrun` runs this command and reaches the others"
            where, what = "torch.distributed", "the other processes were not met"
            raise TrainingError(where, what, got=str(error).splitlines()[0], fix=fix) from None
        team.rank, team.size = dist.get_rank(), dist.get_world_size()
        team.sharded = sharded
        team.watch(os.environ.get("MASTER_ADDR"))
        return team

    def leave(self) -> None:
        """Be alone again; call it however the training ended, or gloo's threads end the process with an abort."""
        super().leave()
        if self.size > 1:
            dist.destroy_process_group()
        self.rank, self.size, self.sharded, self.joint = 0, 1, False, (None, None)

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up, in place, what every process has; the tensors have the same shapes everywhere."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._together():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, value: Any) -> Any:
        """Return the leader's value in every process."""
        if self.size == 1:
            return value
        box = [value if self.rank == 0 else None]
        with self._together():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def check_same(self, mine: Mapping[str, str], leaders: Mapping[str, str]) -> None:
        """Raise TrainingError, in every process, unless all name the same things."""
        if self.size == 1:
            return
        wrong = [name for name, value in leaders.items() if mine.get(name) != value]
        everyones: list[list[str]] = [[] for _ in range(self.size)]
        with self._together():
            dist.all_gather_object(everyones, wrong)
        if names := sorted({name for one in everyones for name in one}):
            where, what = "torch.distributed", f"{names[0]} differs between processes"
            others = sum(map(bool, everyones))
            raise TrainingError(where, what, got=f"{others} of them", fix=f"make {names[0]} the same everywhere")

    def numbers(self, mine: Sequence[int]) -> Sequence[int]:
        """Return the leader's numbers."""
        found: Sequence[int] = self.share(mine)
        return found

    def exchange(self, order: Order | None) -> Order:
        """Give an order (the leader) or get it."""
        given: Order = self.share(order)
        return given

    def computing(self) -> AbstractContextManager[None]:
        """Raise TrainingError when another process is gone that has a part of the base, in a block that computes."""
        return self._together() if self.sharded else nullcontext()

    def help(self, setup: Any) -> None:
        """Take part in the call that the leader makes."""
        carry_out(setup, self.share(None))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.busy = True  # after a fault nothing more may be sent
            where, what = f"rank {self.rank} of {self.size}", "another process of this training is gone"
            got, fix = str(error).splitlines()[0], "run the same command again; nothing saved is lost"
            raise TrainingError(where, what, got=got, fix=fix) from None
