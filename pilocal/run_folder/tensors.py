"""Safetensors files, read and written without a framework.

Source: the format's description (https://github.com/huggingface/safetensors): 8 bytes of length, little-endian, a JSON
header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.run_folder.files import replacing

Float32 = NDArray[np.float32]

FLOATS: Mapping[str, str] = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
"""What numpy reads the format's types of floats as; bfloat16, which numpy lacks, as the 16 bits that it has."""

BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes of a number, by the format's types."""

MOST_HEADER = 100_000_000
"""Bytes of a header, as the format's own library has it."""

MOST_DIMENSIONS = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """In bytes from the start of the file."""
    nbytes: int


def stored_in(path: Path) -> dict[str, Stored]:
    """Return what a file's header names; raises OSError, or ValueError where it is damaged, or lies about its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise ValueError(f"the header does not fit the file; got {size} bytes")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = {name: _stored(path, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError("unreadable header") from None
    places = sorted((stored.begin, stored.begin + stored.nbytes) for stored in found.values())
    end = max([8 + length, *(stop for _, stop in places)])
    if end != size:
        raise ValueError(f"{end} bytes promised; got {size} bytes")
    if any(begin < before for (_, before), (begin, _) in pairwise(places)):
        raise ValueError("two tensors share bytes")
    return found


def _stored(path: Path, entry: Any, start: int) -> Stored:
    """Return a header's entry; raises ValueError, KeyError or TypeError where its bytes are not those of its shape."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if (
        not all(type(each) is int and 0 <= each < 2**63 for each in (*shape, begin, end))
        or len(shape) > MOST_DIMENSIONS
    ):
        raise ValueError("a size is no whole number")
    if end - begin != math.prod(shape) * BYTES.get(dtype, 0) and (dtype in BYTES or end < begin):
        raise ValueError("a tensor has other bytes than its shape says")
    return Stored(path, dtype, shape, start + begin, end - begin)


def read_tensors(path: Path) -> dict[str, Float32]:
    """Return all tensors of a file that holds floats, in float32.

    Raises OSError, or ValueError or KeyError for what is none.
    """
    found: dict[str, Float32] = {}
    for name, stored in stored_in(path).items():
        count = math.prod(stored.shape)
        tensor = np.fromfile(path, FLOATS[stored.dtype], count, offset=stored.begin).reshape(stored.shape)
        found[name] = widened(tensor, stored.dtype)
    return found


def widened(tensor: NDArray[Any], dtype: str) -> Float32:
    """Return floats of one of the format's types in float32, which changes no number."""
    if dtype == "BF16":
        return (tensor.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32, copy=False)


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a file that is either whole or not there; raises RunError on a full disk."""
    from safetensors.numpy import save

    with replacing(path, "wb") as file:
        ordered = {name: np.asarray(value, order="C") for name, value in sorted(tensors.items())}
        file.write(save(ordered, dict(metadata)))
