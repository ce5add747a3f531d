"""The base in GGUF without losing a bit, made once for all of its adapters."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

import pilocal
from pilocal.base.base import Base
from pilocal.base.packed import Packed
from pilocal.errors import ExportError
from pilocal.export.blocks import BY_BITS, Q4_1, block_rows, exact_blocks
from pilocal.export.fused import to_bfloat16
from pilocal.export.gguf import ModelFile, Tensor, write_gguf
from pilocal.export.q4_1 import BLOCK, fits_float16, q4_1_rows
from pilocal.export.weights import BaseWeights
from pilocal.progress import Progress, silent
from pilocal.run_folder.files import MISSHAPEN, cache_folder, disk_error, read_json, replacing, write_json
from pilocal.run_folder.tensors import Float32, widened

Type = GGMLQuantizationType

FLOATS = F16, BF16, F32 = Type.F16, Type.BF16, Type.F32

FILE_TYPES = {
    Q4_1: LlamaFileType.MOSTLY_Q4_1,
    F16: LlamaFileType.MOSTLY_F16,
    BF16: LlamaFileType.MOSTLY_BF16,
    Type.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Type.Q5_1: LlamaFileType.MOSTLY_Q5_1,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    F32: LlamaFileType.ALL_F32,
}
"""What a file is called after its matrices' most frequent type, of two the first one here."""

AT_ONCE = 1 << 24
"""Bytes that are copied at once."""

FACTS = "base.json"
"""What is in a folder of the cache."""

Widened = Mapping[str, Mapping[str, Any]]
"""Packed tensors that only floats hold exactly: by name their `type`, and `bytes` beside `bytes_in_base`."""


@dataclass(frozen=True, slots=True)
class LosslessBase:
    """A base's GGUF file."""

    path: Path
    floats: Widened
    """What it holds as floats though it was packed."""


def cached_base(base: Base, progress: Progress = silent) -> LosslessBase:
    """Return the base's file in the user's cache, made if it is not there yet.

    It is called after its type: base-q4_1.gguf for a 4-bit base. Raises ExportError when llama.cpp could not run it,
    RunError when the disk is full.
    """
    folder = _folder_of(base)
    with _alone(folder):
        if known := _known_base(folder):
            return known
        made = export_lossless(base, folder, progress)
        write_json(folder / FACTS, {"file": made.path.name, "size": made.path.stat().st_size, "floats": made.floats})
        return made


def known_base(base: Base) -> LosslessBase | None:
    """Return the base's file in the user's cache; None where it was not made yet."""
    return _known_base(_folder_of(base))


def _folder_of(base: Base) -> Path:
    return cache_folder() / "bases" / f"{base.sha256[:16]}-{pilocal.__version__}"


def _known_base(folder: Path) -> LosslessBase | None:
    try:
        known = read_json(folder / FACTS)
        path = folder / known["file"]
        return LosslessBase(path, known["floats"]) if path.stat().st_size == known["size"] else None
    except MISSHAPEN:
        return None  # it is made again


def export_lossless(base: Base, folder: Path, progress: Progress = silent) -> LosslessBase:
    """Write the base to `folder` and return the file; every number of it is compared with the base's."""
    weights = BaseWeights(base)
    model = ModelFile(base, weights)
    types = tensor_types(weights)
    matrices = [kind for source, kind in types.items() if len(weights.shapes[source]) > 1]
    most = max(FILE_TYPES, key=matrices.count)
    done = 0

    def tensor(target: str, source: str) -> Tensor:
        def parts() -> Iterator[NDArray[Any]]:
            nonlocal done
            yield from _parts(weights, model, target, types[source])
            done += 1
            progress("export", done, len(types))

        return Tensor(target, weights.shapes[source], types[source], parts)

    out = folder / f"base-{most.name.lower()}.gguf"
    tensors = [tensor(target, source) for target, source in model.names.items()]
    write_gguf(out, model.writer(base.path.stem, FILE_TYPES[most]), model.extra() + tensors)
    in_float32 = weights.architecture.in_float32
    floats = {
        source: {"type": kind.name, "bytes": nbytes(weights, source, kind), "bytes_in_base": weights.nbytes(source)}
        for source, kind in types.items()
        if weights.bits(source) and kind in FLOATS and not in_float32(source, weights.shapes[source])
    }
    return LosslessBase(out, floats)


def tensor_types(weights: BaseWeights) -> Mapping[str, GGMLQuantizationType]:
    """Return for every tensor the smallest type that holds it exactly; some are F32, as llama.cpp wants them."""
    in_float32 = weights.architecture.in_float32
    return {name: F32 if in_float32(name, shape) else _type(weights, name) for name, shape in weights.shapes.items()}


def nbytes(weights: BaseWeights, name: str, kind: GGMLQuantizationType) -> int:
    """Return the bytes that a tensor takes in a type."""
    numbers, size = GGML_QUANT_SIZES[kind]
    return math.prod(weights.shapes[name]) // numbers * size


def _type(weights: BaseWeights, name: str) -> GGMLQuantizationType:
    if _is_plain(weights, name):
        return Q4_1
    for kind in BY_BITS.get(weights.bits(name) or 0, ()):
        if all(exact_blocks(kind, weights.packed(name, *span)) is not None for span in weights.spans(name)):
            return kind
    for kind in (F16, BF16):
        stored_so = weights.dtype(name) == kind.name
        if stored_so or all(_holds(kind, weights.part(name, *span)) for span in weights.spans(name)):
            return kind
    return F32


def _is_plain(weights: BaseWeights, name: str) -> bool:
    """Tell whether a tensor is Q4_1 in another order, which its scales and biases tell."""
    if weights.bits(name) != 4:
        return False
    parts = weights.scales(name)
    per_group = weights.shapes[name][-1] // parts[0].shape[-1]
    return per_group % BLOCK == 0 and all(map(fits_float16, parts))


def _stored(kind: GGMLQuantizationType, floats: Float32) -> NDArray[Any]:
    """Return floats as a type of floats has them, rounded where it must be."""
    if kind == F32:
        return floats
    if kind == BF16:
        return to_bfloat16(floats)
    with np.errstate(over="ignore"):
        return floats.astype(np.float16)


def _holds(kind: GGMLQuantizationType, floats: Float32) -> bool:
    return np.array_equal(widened(_stored(kind, floats), kind.name), floats)


def _parts(weights: BaseWeights, model: ModelFile, target: str, kind: GGMLQuantizationType) -> Iterator[NDArray[Any]]:
    """Yield the bytes of one tensor."""
    source, moved = model.names[target], model.changes(target)
    if kind in FLOATS:
        whole = [model.changed(target, weights.read(source))] if moved else None
        parts = whole or (weights.part(source, *span) for span in weights.spans(source))
        yield from (_stored(kind, part) for part in parts)
        return
    read: Callable[[int, int], Packed] = partial(weights.packed, source)
    if moved:
        read = weights.packed(source).reordered(partial(model.changed, target)).rows
    try:
        if _is_plain(weights, source):
            yield from q4_1_rows(read, weights.rows(source), weights.shapes[source][-1])
        else:
            yield from block_rows(kind, read, weights.spans(source))
    except ValueError as error:
        fix = "this is a fault of pilocal's; please report it"
        raise ExportError(model.base.path, f"{source} as {kind.name}: {error}", fix=fix) from None


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
        temporary.replace(target)  # which leaves both where they are names of one file already
    except OSError as error:
        raise disk_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def links(folder: Path) -> list[Path]:
    """Return the files of a folder that are a second name of another's, or a symbolic link to it."""
    return sorted(
        path for path in folder.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
    )


def copy(path: Path, target: Path) -> None:
    """Copy a file, or put a copy in the place of a link.

    Raises RunError when the disk is full or the link leads nowhere.
    """
    with replacing(target, "wb") as file, path.open("rb") as source:
        shutil.copyfileobj(source, file, AT_ONCE)
