"""Whether all numbers of a base are numbers: one that is infinite or NaN spoils every answer, and every training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from pilocal.base.base import AGAIN, Base
from pilocal.errors import ModelError, RunError
from pilocal.run_folder.files import cache_folder, write_json
from pilocal.run_folder.hashes import LARGE
from pilocal.run_folder.tensors import Stored, stored_in

INFINITY: Mapping[str, tuple[str, int]] = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""The bits of an infinite float, and what they are read as; only those of NaN are larger, if the sign is left out."""

AT_ONCE = 1 << 22
"""Numbers that are looked at together, which bounds the memory."""


def check_finite(base: Base) -> None:
    """Raise ModelError when a float of the base is infinite or NaN; of packed tensors these are scales and biases.

    That a large base has none is remembered in the user's cache.
    """
    note = cache_folder() / "finite" / f"{base.sha256}.json"
    if note.is_file():
        return
    for path, name, is_finite in _tensors(base):
        if not is_finite():
            raise ModelError(path, f"{name} holds numbers that are infinite or NaN", fix=AGAIN)
    if sum(path.stat().st_size for path in base.weight_files) >= LARGE:
        with suppress(RunError):
            write_json(note, {"model": base.model})


def _tensors(base: Base) -> Iterator[tuple[Path, str, Callable[[], bool]]]:
    """Yield where each tensor lies, its name, and what tells whether it is finite."""
    if base.gguf:
        for name in base.gguf_weights.shapes:
            yield base.gguf, name, partial(base.gguf_weights.is_finite, name)
        return
    for path in base.weight_files:
        for name, stored in stored_in(path).items():
            yield path, name, partial(_is_finite, stored)


def _is_finite(stored: Stored) -> bool:
    if stored.dtype not in INFINITY:
        return True
    kind, infinity = INFINITY[stored.dtype]
    width, most = np.dtype(kind).itemsize, np.iinfo(kind).max >> 1
    count = math.prod(stored.shape)
    for start in range(0, count, AT_ONCE):
        bits = np.fromfile(stored.path, kind, min(AT_ONCE, count - start), offset=stored.begin + start * width)
        if (bits & most).max(initial=0) >= infinity:
            return False
    return True
