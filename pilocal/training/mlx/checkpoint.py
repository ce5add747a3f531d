"""Checkpoints: adapter, optimizer, step and where the stages ended in one file that is whole or not there.

The order of the rows and dropout are functions of the seed and the step, so no generator's state needs saving. The
last two are kept, in case the newest is damaged; every file carries a checksum of its arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from pilocal.training.mlx.adapter import adapter_weights, save_arrays

KEPT = 2
"""How many checkpoints of a stage stay."""

BEST = "best.safetensors"
"""The checkpoint of a stage's lowest validation loss."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps of the whole run."""

    step: int
    ends: tuple[int, ...]
    """After how many steps each stage that is over ended."""
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def save_checkpoint(
    folder: Path, step: int, key: str, model: Any, optimizer: Any, *, ends: Sequence[int] = (), best: bool = False
) -> None:
    """Write the state after `step` steps and remove all but the last two checkpoints of this folder.

    `key` is a fingerprint of everything that decides the training; a checkpoint with another key is of no use. `ends`
    tells where the stages ended that are over. With `best` it goes to a file of its own, in the place of the best so
    far.
    """
    arrays = {f"adapter.{name}": value for name, value in adapter_weights(model).items()}
    arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(optimizer.state)}
    path = folder / (BEST if best else f"step-{step:07d}.safetensors")
    save_arrays(
        path, arrays, {"step": str(step), "ends": json.dumps(list(ends)), "key": key, "sha256": _checksum(arrays)}
    )
    if best:
        return
    others = sorted(folder.glob("step-*.safetensors"))
    later = [other for other in others if other.name > path.name]  # of a run with another key
    for old in later + others[: len(others) - len(later)][:-KEPT]:
        old.unlink()


def find_checkpoint(folders: Sequence[Path], key: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint with this key in any of the folders, or None; tell `warn` of a damaged one."""
    paths = sorted((path for folder in folders for path in folder.glob("step-*.safetensors")), key=lambda p: p.name)
    read = (_read(path, key, warn, "going on from the one before") for path in reversed(paths))
    return next(filter(None, read), None)


def find_best(folder: Path, key: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint of the lowest validation loss, or None where there is none or it is damaged."""
    path = folder / BEST
    return _read(path, key, warn, "taking the last state instead") if path.is_file() else None


def _read(path: Path, key: str, warn: Callable[[str], None], instead: str) -> Checkpoint | None:
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        if metadata.get("key") != key:
            return None
        whole = metadata.get("sha256") == _checksum(arrays)
    except (RuntimeError, ValueError):
        whole = False
    if not whole:
        warn(f"{path}: damaged checkpoint; {instead}")
        return None
    parts: dict[str, dict[str, mx.array]] = {"adapter": {}, "optimizer": {}}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    ends = tuple(json.loads(metadata["ends"]))
    return Checkpoint(int(metadata["step"]), ends, parts["adapter"], parts["optimizer"])


def restore(checkpoint: Checkpoint, model: Any, optimizer: Any) -> None:
    """Put a checkpoint's state into the model and the optimizer."""
    model.load_weights(list(checkpoint.adapter.items()), strict=False)
    optimizer.state = tree_unflatten(list(checkpoint.optimizer.items()))
    mx.eval(model.parameters(), optimizer.state)


def _checksum(arrays: Mapping[str, mx.array]) -> str:
    """Return the SHA-256 of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.array(value.flatten().view(mx.uint8)).tobytes())
    return digest.hexdigest()
