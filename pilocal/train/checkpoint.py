"""Checkpoints: adapter, optimizer and step in one file that is whole or not there.

The order of the rows and dropout are functions of the seed and the step, so no generator's state needs saving.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from pilocal.train.adapter import adapter_weights, save_arrays


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps of the whole run."""

    step: int
    key: str
    """Fingerprint of everything that decides the training; a checkpoint with another key is of no use."""
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def save_checkpoint(folder: Path, step: int, key: str, model: Any, optimizer: Any) -> None:
    """Write the state after `step` steps and remove the older checkpoints of this folder."""
    arrays = {f"adapter.{name}": value for name, value in adapter_weights(model).items()}
    arrays |= {f"optimizer.{name}": value for name, value in tree_flatten(optimizer.state)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:07d}.safetensors"
    save_arrays(path, arrays, {"step": str(step), "key": key})
    for old in folder.glob("step-*.safetensors"):
        if old != path:
            old.unlink()


def find_checkpoint(folders: list[Path], key: str) -> Checkpoint | None:
    """Return the newest readable checkpoint with this key in any of the folders, or None."""
    paths = sorted((path for folder in folders for path in folder.glob("step-*.safetensors")), key=lambda p: p.name)
    for path in reversed(paths):
        try:
            loaded: Any = mx.load(str(path), return_metadata=True)
        except (RuntimeError, ValueError):
            continue
        arrays, metadata = loaded
        if metadata.get("key") == key:
            parts: dict[str, dict[str, mx.array]] = {"adapter": {}, "optimizer": {}}
            for name, value in arrays.items():
                kind, _, rest = name.partition(".")
                parts[kind][rest] = value
            return Checkpoint(int(metadata["step"]), key, parts["adapter"], parts["optimizer"])
    return None


def restore(checkpoint: Checkpoint, model: Any, optimizer: Any) -> None:
    """Put a checkpoint's state into the model and the optimizer."""
    model.load_weights(list(checkpoint.adapter.items()), strict=False)
    optimizer.state = tree_unflatten(list(checkpoint.optimizer.items()))
    mx.eval(model.parameters(), optimizer.state)
