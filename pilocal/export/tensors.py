"""A safetensors file, written one tensor at a time.

Source: the format's description (https://github.com/huggingface/safetensors): 8 bytes of length, little-endian, a JSON
header, then the tensors' bytes in the header's order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.run_folder.files import replacing

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
"""Bytes of a value, by the format's name of its type."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header."""

    dtype: str
    """One of WIDTHS."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


def write_tensors(
    path: Path, layout: Mapping[str, Entry], tensors: Iterable[NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a file that is either whole or not there; `tensors` come in the order of `layout`, one held at a time.

    A BF16 tensor comes as the uint16 of its bits. Raises RunError when the disk is full.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stored in layout.items():
        begin, end = end, end + stored.nbytes
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    with replacing(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored, tensor in zip(layout.values(), tensors, strict=True):
            if tensor.nbytes != stored.nbytes:
                raise ValueError(f"{path}: {tensor.nbytes} bytes for {stored}")
            file.write(np.ascontiguousarray(tensor).data)
