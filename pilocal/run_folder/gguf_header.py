"""What a GGUF file says of itself, and whether it is all there; no number of its tensors is read.

Source: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError

STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The layout of every other type of value."""

VERSIONS = (2, 3)
"""Of the format; the first, of 2023, counted in 32 bits."""

MOST_DIMENSIONS = 4
"""Of a tensor."""

MOST_ITEMS = 2**21
"""Of an array, and of the tensors or the metadata of a file; the largest vocabularies have an eighth of it."""

MOST_TEXT = 2**24
"""Bytes of one text."""

AGAIN = "copy, download or export it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, as the header has it."""

    path: Path
    """The file in which it lies."""
    name: str
    type: int
    """ggml's number of the type."""
    shape: tuple[int, ...]
    """In numbers, rows first."""
    begin: int
    """In bytes from the start of the file."""

    @property
    def nbytes(self) -> int:
        """How many bytes it takes; raises ValueError for a type that the gguf package does not know."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self.type)]
        return math.prod(self.shape) // block * size

    @property
    def type_name(self) -> str:
        """llama.cpp's name of its type; the number of one that the gguf package does not know."""
        from gguf import GGMLQuantizationType

        try:
            return GGMLQuantizationType(self.type).name
        except ValueError:
            return str(self.type)


@dataclass(frozen=True, slots=True)
class Header:
    """One file's header."""

    metadata: Mapping[str, Any]
    """Arrays are lists."""
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file but for its arrays.

    Raises ModelError when it is no GGUF file, or ends before its last tensor does.
    """
    header = read_gguf(path, arrays=False)
    check_whole(path, header)
    return dict(header.metadata)


def read_gguf(path: Path, *, arrays: bool = True) -> Header:
    """Return the header of a GGUF file, without its arrays' values if they are not wanted.

    Raises ModelError when it is no GGUF file, of another byte order or version, or its header is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise ModelError(path, "not a GGUF file", got=bytes(data[:4]), fix=AGAIN)
            (version,) = struct.unpack_from("<I", data, 4)
            if version and not version & 0xFFFF:
                fix = "take one for little-endian machines, as nearly all are"
                raise ModelError(path, "the GGUF file is for big-endian machines", fix=fix)
            if version not in VERSIONS:
                raise ModelError(path, "this version of GGUF cannot be read", got=version, fix="convert it again")
            return _Cursor(path, data).header(arrays)
    except OSError as error:
        raise ModelError(path, f"cannot read it: {error.strerror}", fix=AGAIN) from None
    except (ValueError, KeyError, TypeError, OverflowError, struct.error):  # empty, an unknown type, beyond the end
        raise ModelError(path, "the GGUF file is cut off or damaged", fix=AGAIN) from None


def check_whole(path: Path, header: Header) -> None:
    """Raise ModelError when the file ends before its last tensor does."""
    try:
        end = max((tensor.begin + tensor.nbytes for tensor in header.tensors), default=0)
    except ValueError:
        raise ModelError(path, "the GGUF file is cut off or damaged", fix=AGAIN) from None
    missing = end - path.stat().st_size
    if missing > 0:
        raise ModelError(path, f"the GGUF file is cut off: {missing} bytes are missing", fix=AGAIN)


class _Cursor:
    """A place in the file, which every reading moves on."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data = path, data
        self._at = 8  # after the magic and the version

    def header(self, arrays: bool) -> Header:
        tensors, pairs = self._count(), self._count()
        metadata = {}
        for _ in range(pairs):
            key = self._text()
            kind = self._number("I")
            if kind != ARRAY:
                metadata[key] = self._text() if kind == STRING else self._number(NUMBERS[kind])
            elif arrays:
                metadata[key] = self._array()
            else:
                self._skip_array()
        found = [self._tensor() for _ in range(tensors)]
        alignment = max(1, int(metadata.get("general.alignment", 32)))
        start = -(-self._at // alignment) * alignment
        placed = (TensorInfo(self._path, name, kind, shape, start + begin) for name, kind, shape, begin in found)
        return Header(metadata, tuple(placed))

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._text(), self._number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError("no tensor has so many dimensions")
        shape = [self._number("Q") for _ in range(dimensions)]
        return name, self._number("I"), tuple(reversed(shape)), self._number("Q")

    def _array(self) -> list[Any]:
        kind, count = self._number("I"), self._count()
        if kind == STRING:
            return [self._text() for _ in range(count)]
        start = self._at
        self._move(count * struct.calcsize(f"<{NUMBERS[kind]}"))
        return list(struct.unpack_from(f"<{count}{NUMBERS[kind]}", self._data, start))

    def _skip_array(self) -> None:
        kind, count = self._number("I"), self._count()
        if kind == STRING:
            for _ in range(count):
                self._move(self._number("Q"))
        else:
            self._move(count * struct.calcsize(f"<{NUMBERS[kind]}"))

    def _text(self) -> str:
        size = self._number("Q")
        if size > MOST_TEXT:
            raise ValueError("no text is so long")
        start = self._at
        self._move(size)
        return self._data[start : self._at].decode()

    def _count(self) -> int:
        count: int = self._number("Q")
        if count > MOST_ITEMS:
            raise ValueError("no file has so many")
        return count

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return value

    def _move(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("a value ends beyond its end")
