"""Safetensors files, read and written without a framework.

Source: the format's description (https://github.com/huggingface/safetensors): 8 bytes of length, little-endian, a JSON
header, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.run_folder.files import replacing

Float32 = NDArray[np.float32]

FLOATS: Mapping[str, str] = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
"""What numpy reads the format's types of floats as; bfloat16, which numpy lacks, as the 16 bits that it has."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """In bytes from the start of the file."""


def stored_in(path: Path) -> dict[str, Stored]:
    """Return what a file's header names; raises OSError, or ValueError or KeyError for what is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def read_tensors(path: Path) -> dict[str, Float32]:
    """Return all tensors of a file that holds floats, in float32.

    Raises OSError, or ValueError or KeyError for what is none.
    """
    found = {}
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
