"""Which backend trains a run: a choice that the command makes and the run folder remembers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, RunError, did_you_mean
from pilocal.run_folder.adapter import POINT, WEIGHTS_FILE
from pilocal.run_folder.hashes import sha256_file

MLX, TORCH = "mlx", "torch"

UNPACKED, PACKED, NF4 = WEIGHTS = ("unpacked", "packed", "nf4")
"""How PyTorch holds a 4-bit base: as floats; as MLX packs it, which is the same numbers in less memory and more time;
or rounded again by bitsandbytes, which is other numbers."""

SHARDED, OFFLOADED = "ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"
"""What `accelerate launch` sets for --use_fsdp and --fsdp_offload_params."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What trains, and where it starts from."""

    name: str = MLX
    """"mlx" or "torch"."""
    device: str | None = None
    """The kind of device that PyTorch computes on."""
    weights: str | None = None
    """One of WEIGHTS; when left out, "packed" where floats would not fit a GPU, "unpacked" elsewhere."""
    initial_adapter: Path | None = None
    """Folder of the adapter that PyTorch starts from; when left out, the start that MLX draws from the seed."""

    def facts(self, precision: str) -> list[Any]:
        """Return what decides a training beside the task: nothing for MLX; `precision` is what the base computes in.

        Raises InputError when the initial adapter is not there.
        """
        if self.name == MLX:
            return []
        initial = None
        if self.initial_adapter:
            path = self.initial_adapter / WEIGHTS_FILE
            if not path.is_file():
                raise InputError(self.initial_adapter, f"no {WEIGHTS_FILE}", fix=POINT)
            initial = sha256_file(path)
        made = {"backend": self.name, "device": self.device, "precision": precision, "initial_adapter": initial}
        return [made | ({"weights": NF4} if self.weights == NF4 else {})]  # the others are the same numbers

    def as_json(self) -> dict[str, Any]:
        """Return what run.json keeps."""
        if self.name == MLX:
            return {"name": self.name}
        initial = str(self.initial_adapter.resolve()) if self.initial_adapter else None
        return {"name": self.name, "device": self.device, "weights": self.weights, "initial_adapter": initial}


def backend_named(name: str) -> Backend:
    """Return a backend by its name; raises InputError when there is none of that name."""
    if name not in (MLX, TORCH):
        raise InputError("backend", "there is no such backend", got=name, fix=did_you_mean(name, (MLX, TORCH)))
    return Backend(name=name)


def torchrun_rank() -> int | None:
    """Return this process's rank among those that torchrun started together, or None when it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return None
    return int(os.environ["RANK"])


def shards() -> int:
    """Return over how many processes the frozen base is sharded: over all that `accelerate launch --use_fsdp` started.

    Elsewhere it is 1. Raises InputError where accelerate was asked to keep the shards in the CPU's memory.
    """
    asked = {name: os.environ.get(name, "").lower() in ("1", "true") for name in (SHARDED, OFFLOADED)}
    if torchrun_rank() is None or not asked[SHARDED]:
        return 1
    if asked[OFFLOADED]:
        fix = "leave --fsdp_offload_params out, or set it to false"
        raise InputError(OFFLOADED, "shards stay where they are computed with", got="true", fix=fix)
    return int(os.environ["WORLD_SIZE"])


def backend_of(state: Mapping[str, Any], where: Path) -> Backend:
    """Return the backend that a run.json names, MLX where it names none.

    Raises RunError for one that this version does not know.
    """
    kept = state.get("backend", {"name": MLX})
    try:
        initial = kept.get("initial_adapter")
        backend = Backend(
            name=kept["name"],
            device=kept.get("device"),
            weights=kept.get("weights"),
            initial_adapter=Path(initial) if initial else None,
        )
    except (AttributeError, KeyError, TypeError):
        backend = Backend(name="")
    if backend.name not in (MLX, TORCH):
        fix = "go on with the version of pilocal that made it, or choose a new folder with --run"
        what = "this run was made by another version of pilocal: its backend is unknown"
        raise RunError(where, what, got=kept, fix=fix)
    return backend
