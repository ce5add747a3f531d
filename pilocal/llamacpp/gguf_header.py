"""What a GGUF file says of itself, and whether it is all there; read before llama.cpp loads it.

Source: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError

STRING, ARRAY = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""The layout of every other type of value."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file but for its arrays.

    Raises ModelError when it is no GGUF file, or ends before its last tensor does.
    """
    fix = "copy or export it again"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise ModelError(path, "not a GGUF file", got=bytes(data[:4]), fix=fix)
            cursor = _Cursor(data)
            metadata = cursor.metadata()
            missing = cursor.end(metadata) - len(data)
    except OSError as error:
        raise ModelError(path, f"cannot read it: {error.strerror}", fix=fix) from None
    except (ValueError, KeyError, struct.error):  # an empty file, an unknown type, a value beyond the end
        raise ModelError(path, "the GGUF file is cut off or damaged", fix=fix) from None
    if missing > 0:
        raise ModelError(path, f"the GGUF file is cut off: {missing} bytes are missing", fix=fix)
    return metadata


class _Cursor:
    """A place in the file, which every reading moves on."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 8  # after the magic and the version
        self._tensors, self._pairs = self._number("<Q"), self._number("<Q")

    def metadata(self) -> dict[str, Any]:
        found = {}
        for _ in range(self._pairs):
            key = self._text()
            kind = self._number("<I")
            if kind == ARRAY:
                self._skip_array()
            else:
                found[key] = self._text() if kind == STRING else self._number(NUMBERS[kind])
        return found

    def end(self, metadata: dict[str, Any]) -> int:
        """Return where the last tensor ends, once the metadata was read."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        last = 0
        for _ in range(self._tensors):
            self._text()
            shape = [self._number("<Q") for _ in range(self._number("<I"))]
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("<I"))]
            last = max(last, self._number("<Q") + math.prod(shape) // block * size)
        alignment = int(metadata.get("general.alignment", 32))
        return -(-self._at // alignment) * alignment + last

    def _skip_array(self) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == STRING:
            for _ in range(count):
                self._move(self._number("<Q"))
        else:
            self._move(count * struct.calcsize(NUMBERS[kind]))

    def _text(self) -> str:
        size = self._number("<Q")
        start = self._at
        self._move(size)
        return self._data[start : self._at].decode()

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _move(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError("a text ends beyond its end")
