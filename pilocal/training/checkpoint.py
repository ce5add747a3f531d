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

from numpy.typing import NDArray

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, parse_json, replacing
from pilocal.run_folder.typed import fits
from pilocal.training.backend import MLX, TORCH

Arrays = Mapping[str, NDArray[Any]]

KEPT = 2
"""How many checkpoints of a stage stay."""

BEST = "best.safetensors"
"""The checkpoint of a stage's lowest validation loss."""


@dataclass(frozen=True, slots=True)
class Format:
    """What sets the checkpoints of one backend apart from another's."""

    name: str | None
    """What the file calls itself; None where it says nothing."""
    types: str
    """What stands before the name of a type when the checksum is taken."""


FORMATS: Mapping[str, Format] = {MLX: Format(None, "mlx.core."), TORCH: Format("torch-1", "")}
"""Each backend's format."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps of the whole run."""

    step: int
    ends: tuple[int, ...]
    """After how many steps each stage that is over ended."""
    adapter: Arrays
    optimizer: Arrays


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training."""

    key: str
    """A fingerprint of everything that decides the training; a file with another key is of no use."""
    format: Format
    warn: Callable[[str], None]
    """Hears of a damaged file."""

    def save(self, folder: Path, state: Checkpoint) -> None:
        """Write a state and remove all but the last two checkpoints of this folder; raises RunError on a full disk."""
        path = folder / f"step-{state.step:07d}.safetensors"
        self._write(path, state)
        others = sorted(folder.glob("step-*.safetensors"))
        later = [other for other in others if other.name > path.name]  # of a run with another key
        for old in later + others[: len(others) - len(later)][:-KEPT]:
            old.unlink()

    def save_best(self, folder: Path, state: Checkpoint) -> None:
        """Write a state in the place of the best so far; raises RunError on a full disk."""
        self._write(folder / BEST, state)

    def newest(self, folders: Sequence[Path]) -> Checkpoint | None:
        """Return the newest whole checkpoint with this key in any of the folders, or None.

        Raises RunError for one with this key that another version wrote in another format.
        """
        paths = sorted((path for folder in folders for path in folder.glob("step-*.safetensors")), key=lambda p: p.name)
        read = (self._read(path, "going on from the one before") for path in reversed(paths))
        return next(filter(None, read), None)

    def best(self, folder: Path) -> Checkpoint | None:
        """Return the checkpoint of the lowest validation loss, or None where there is none or it is damaged."""
        path = folder / BEST
        return self._read(path, "taking the last state instead") if path.is_file() else None

    def _write(self, path: Path, state: Checkpoint) -> None:
        from safetensors.numpy import save

        arrays = {f"adapter.{name}": value for name, value in state.adapter.items()}
        arrays |= {f"optimizer.{name}": value for name, value in state.optimizer.items()}
        said = {} if self.format.name is None else {"format": self.format.name}
        said |= {"step": str(state.step), "ends": json.dumps(list(state.ends)), "key": self.key}
        with replacing(path, "wb") as file:
            file.write(save(arrays, said | {"sha256": checksum(arrays, self.format)}))

    def _read(self, path: Path, instead: str) -> Checkpoint | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                said = file.metadata() or {}
                if said.get("key") != self.key:
                    return None
                if said.get("format") != self.format.name:
                    fix = "finish the run with the version that began it, or delete the folder beside it"
                    raise RunError(path, "a checkpoint of another version of pilocal", got=said.get("format"), fix=fix)
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            if said.get("sha256") == checksum(arrays, self.format):
                return _state(said, arrays)
        except (SafetensorError, *MISSHAPEN):
            pass
        self.warn(f"{path}: damaged checkpoint; {instead}")
        return None


def _state(said: Mapping[str, str], arrays: Arrays) -> Checkpoint:
    """Return the state in a file; raises one of MISSHAPEN where its words are not those that are written."""
    parts: dict[str, dict[str, NDArray[Any]]] = {"adapter": {}, "optimizer": {}}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    ends = parse_json(said["ends"])
    if not fits(ends, list[int]):
        raise TypeError("ends")
    return Checkpoint(int(said["step"]), tuple(ends), parts["adapter"], parts["optimizer"])


def checksum(arrays: Arrays, form: Format) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, as hex.

    >>> import numpy as np
    >>> arrays = {"step": np.array(7, dtype=np.uint64)}
    >>> checksum(arrays, FORMATS["torch"]) == hashlib.sha256(b"step uint64 ()" + arrays["step"].tobytes()).hexdigest()
    True
    """
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {form.types}{value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
