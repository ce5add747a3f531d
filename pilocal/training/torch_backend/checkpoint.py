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

from safetensors import SafetensorError, safe_open

from pilocal.errors import RunError
from pilocal.training.torch_backend.adapter import save_arrays
from pilocal.training.torch_backend.trainer import TorchTrainer

FORMAT = "torch-1"
"""What a checkpoint of this layout calls itself."""

KEPT = 2
"""How many checkpoints of a stage stay."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps of the whole run."""

    step: int
    ends: tuple[int, ...]
    """After how many steps each stage that is over ended."""
    adapter: dict[str, Any]
    optimizer: dict[str, Any]


def save_checkpoint(folder: Path, step: int, key: str, trainer: TorchTrainer, ends: Sequence[int]) -> None:
    """Write the state after `step` steps and remove all but the last two checkpoints of this folder.

    `key` is a fingerprint of everything that decides the training; a checkpoint with another key is of no use.
    """
    arrays: dict[str, Any] = {f"adapter.{name}": value for name, value in trainer.adapter().items()}
    arrays |= {f"optimizer.{name}": value for name, value in trainer.optimizer_state().items()}
    said = {"format": FORMAT, "step": str(step), "ends": json.dumps(list(ends)), "key": key}
    path = folder / f"step-{step:07d}.safetensors"
    save_arrays(path, arrays, said | {"sha256": _checksum(arrays)})
    others = sorted(folder.glob("step-*.safetensors"))
    later = [other for other in others if other.name > path.name]  # of a run with another key
    for old in later + others[: len(others) - len(later)][:-KEPT]:
        old.unlink()


def find_checkpoint(folders: Sequence[Path], key: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint with this key in any of the folders, or None; tell `warn` of a damaged one.

    Raises RunError for one with this key that another version wrote in another layout.
    """
    paths = sorted((path for folder in folders for path in folder.glob("step-*.safetensors")), key=lambda p: p.name)
    return next(filter(None, (_read(path, key, warn) for path in reversed(paths))), None)


def restore(checkpoint: Checkpoint, trainer: TorchTrainer) -> None:
    """Put a checkpoint's state into a fresh trainer."""
    trainer.set_adapter(checkpoint.adapter)
    trainer.set_optimizer_state(checkpoint.optimizer)


def _read(path: Path, key: str, warn: Callable[[str], None]) -> Checkpoint | None:
    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            if said.get("key") != key:
                return None
            if said.get("format") != FORMAT:
                fix = "finish the run with the version that began it, or delete the folder beside it"
                raise RunError(path, "a checkpoint of another version of pilocal", got=said.get("format"), fix=fix)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        whole = said.get("sha256") == _checksum(arrays)
    except (SafetensorError, OSError, ValueError):
        whole = False
    if not whole:
        warn(f"{path}: damaged checkpoint; going on from the one before")
        return None
    parts: dict[str, dict[str, Any]] = {"adapter": {}, "optimizer": {}}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    return Checkpoint(int(said["step"]), tuple(json.loads(said["ends"])), parts["adapter"], parts["optimizer"])


def _checksum(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
