"""What the teacher says, RUN/teacher/SPLIT/N.npz: one reader and one writer, some rows a file."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np

from pilocal.prompt.soft import Soft
from pilocal.run_folder.files import MISSHAPEN, replacing

ARCHIVE = (EOFError, RuntimeError, MemoryError, SyntaxError, TokenError, BadZipFile, zlib.error)
"""What else a damaged archive raises: numpy reads the header of an array as Python writes a dictionary."""

PARTS = ("ids", "log_probs", "tail")


def write_soft(path: Path, said: Sequence[Soft], key: str) -> None:
    """Write what a teacher says about some rows, made for a `key`; raises RunError on a full disk."""
    arrays = {
        "ids": np.concatenate([one.ids_CK for one in said]),
        "log_probs": np.concatenate([one.log_probs_CK for one in said]),
        "tail": np.concatenate([one.tail_C for one in said]),
        "sizes": np.array([len(one.ids_CK) for one in said], dtype=np.int32),
    }
    arrays["sum"] = np.frombuffer(_sum(arrays, key), dtype=np.uint8)
    with replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_soft(path: Path, key: str) -> list[Soft] | None:
    """Return what was written with this key; None where nothing was, it is damaged, or the key is another."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*PARTS, "sizes", "sum")}
        if arrays.pop("sum").tobytes() != _sum(arrays, key):
            return None
    except (*MISSHAPEN, *ARCHIVE):
        return None
    ends = np.cumsum(arrays["sizes"])[:-1]
    return [Soft(*parts) for parts in zip(*(np.split(arrays[name], ends) for name in PARTS), strict=True)]


def _sum(arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], key: str) -> bytes:
    found = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()
