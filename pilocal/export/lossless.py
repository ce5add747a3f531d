"""The base in GGUF without losing a bit, made once for all of its adapters."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import ExportError
from pilocal.export.fused import to_bfloat16
from pilocal.export.gguf import ModelFile, Tensor, to_float16, write_gguf
from pilocal.export.q4_1 import BLOCK, fits_float16, q4_1_rows
from pilocal.export.weights import BaseWeights, Packed
from pilocal.progress import Progress, silent
from pilocal.run_folder.files import cache_folder, disk_error, replacing, write_json

Q4_1, F16, BF16, F32 = (GGMLQuantizationType[name] for name in ("Q4_1", "F16", "BF16", "F32"))
FILE_TYPES = {Q4_1: LlamaFileType.MOSTLY_Q4_1, F16: LlamaFileType.MOSTLY_F16, BF16: LlamaFileType.MOSTLY_BF16}

AT_ONCE = 1 << 24
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class LosslessBase:
    """A base's GGUF file."""

    path: Path
    inexact: tuple[str, ...]
    """Tensors that no type of GGUF's holds exactly: they are in F16, rounded."""


def cached_base(base: Base, progress: Progress = silent) -> LosslessBase:
    """Return the base's file in the user's cache, made if it is not there yet.

    It is called after its type: base-q4_1.gguf for a 4-bit base. Raises ExportError when llama.cpp could not run it,
    RunError when the disk is full.
    """
    folder = cache_folder() / "bases" / f"{base.sha256[:16]}-{version('pilocal')}"
    facts = folder / "base.json"
    with _alone(folder):
        try:
            known = json.loads(facts.read_text(encoding="utf-8"))
            path = folder / known["file"]
            if path.stat().st_size == known["size"]:
                return LosslessBase(path, tuple(known["inexact"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # made again
        made = export_lossless(base, folder, progress)
        write_json(facts, {"file": made.path.name, "size": made.path.stat().st_size, "inexact": made.inexact})
        return made


def export_lossless(base: Base, folder: Path, progress: Progress = silent) -> LosslessBase:
    """Write the base to `folder` and return the file; every number of it is compared with the base's."""
    weights = BaseWeights(base)
    model = ModelFile(base, weights)
    types = {source: _type(weights, source) for source in weights.shapes}
    matrices = [kind for source, (kind, _) in types.items() if len(weights.shapes[source]) > 1]
    most = max(FILE_TYPES, key=matrices.count)
    done = 0

    def tensor(target: str, source: str) -> Tensor:
        kind, _ = types[source]

        def parts() -> Iterator[NDArray[Any]]:
            nonlocal done
            yield from _parts(weights, model, target, source, kind)
            done += 1
            progress("export", done, len(types))

        return Tensor(target, weights.shapes[source], kind, parts)

    out = folder / f"base-{most.name.lower()}.gguf"
    tensors = model.extra() + [tensor(target, source) for target, source in model.names.items()]
    write_gguf(out, model.writer(base.path.stem, FILE_TYPES[most]), tensors)
    return LosslessBase(out, tuple(source for source, (_, exact) in types.items() if not exact))


def _type(weights: BaseWeights, name: str) -> tuple[GGMLQuantizationType, bool]:
    """Return the smallest type that holds a tensor exactly; F16 and False where there is none."""
    shape, stored = weights.shapes[name], weights.dtype(name)
    if len(shape) == 1:
        return F32, True
    if weights.is_4_bit(name):
        parts = weights.scales(name)
        per_group = shape[1] // parts[0].shape[1]
        exact = per_group % BLOCK == 0 and all(map(fits_float16, parts))
        return (Q4_1, True) if exact else (F16, False)
    if stored == "F16" or fits_float16(weights.read(name)):
        return F16, True
    return (BF16, True) if stored == "BF16" else (F16, False)


def _parts(
    weights: BaseWeights, model: ModelFile, target: str, source: str, kind: GGMLQuantizationType
) -> Iterator[NDArray[Any]]:
    """Yield the bytes of one tensor."""
    if kind != Q4_1:
        floats = model.ordered(target, weights.read(source))
        if kind == F16:
            yield to_float16(floats, model.base.path, source)
        else:
            yield to_bfloat16(floats) if kind == BF16 else floats
        return
    read: Callable[[int, int], Packed] = partial(weights.packed, source)
    if model.reorders(target):
        read = weights.packed(source).reordered(partial(model.ordered, target)).rows
    try:
        yield from q4_1_rows(read, *weights.shapes[source])
    except ValueError as error:
        fix = "this is a fault of pilocal's; please report it"
        raise ExportError(model.base.path, f"{source} as Q4_1: {error}", fix=fix) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from making the same file at the same time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise disk_error(folder, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def link(file: Path, folder: Path) -> Path:
    """Put a file into a folder under its own name, as a second name where the disk is the same; return the new path."""
    target = folder / file.name
    temporary = folder / f".{file.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(file, temporary)
        except OSError:
            temporary.symlink_to(file.resolve())
        temporary.replace(target)
    except OSError as error:
        raise disk_error(target, error) from error
    return target


def links(folder: Path) -> list[Path]:
    """Return the files of a folder that are a second name of another's, or a symbolic link to it."""
    return sorted(
        path for path in folder.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
    )


def copy_in_place(path: Path) -> None:
    """Put a copy in the place of a link; raises RunError when the disk is full or the link leads nowhere."""
    with replacing(path, "wb") as file, path.open("rb") as source:
        shutil.copyfileobj(source, file, AT_ONCE)
