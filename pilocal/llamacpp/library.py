"""The library itself: imported once, silent, and with its errors collected for whoever asks."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError

ERROR = 4
"""GGML_LOG_LEVEL_ERROR in ggml.h."""

_collectors: list[list[str]] = []
"""Where llama.cpp's errors go at the moment; it has one log for the whole process."""


@cache
def load_llama_cpp() -> Any:
    """Return the module `llama_cpp`, whose log is kept off stderr from now on."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_log_callback(), None)
    return llama_cpp


@cache
def _log_callback() -> Any:
    """Return the function that llama.cpp calls with its log; it keeps a bare pointer, so the object must live on."""
    import llama_cpp

    def collect(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level == ERROR:
            for errors in _collectors:
                errors.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(collect)


@contextmanager
def collected_errors() -> Iterator[list[str]]:
    """Yield a list to which llama.cpp's errors are added as they come."""
    errors: list[str] = []
    _collectors.append(errors)
    try:
        yield errors
    finally:
        _collectors[:] = [each for each in _collectors if each is not errors]


def refusal(path: Path, reasons: Sequence[str], *, fix: str = "`pilocal export` makes it again") -> ModelError:
    """Return the error for a file that llama.cpp does not load; the first of its reasons is the nearest to the cause.

    >>> str(refusal(Path("a.gguf"), ["gguf_init: not a GGUF file", "llama_model_load: failed"], fix="copy it again"))
    'a.gguf: llama.cpp refuses the file: not a GGUF file; copy it again'
    """
    reason = re.sub(r"^\w+: ", ": ", reasons[0]) if reasons else ""
    return ModelError(path, f"llama.cpp refuses the file{reason}", fix=fix)


def build_flags() -> dict[str, dict[str, str]]:
    """Return what llama.cpp was built with, by device: {"CPU": {"AVX2": "1", ...}}."""
    return read_flags(load_llama_cpp().llama_print_system_info().decode(errors="replace"))


def read_flags(said: str) -> dict[str, dict[str, str]]:
    """Return what llama.cpp's line on its build says.

    >>> read_flags("Metal : EMBED_LIBRARY = 1 | CPU : NEON = 1 | FMA = 1 | ")
    {'Metal': {'EMBED_LIBRARY': '1'}, 'CPU': {'NEON': '1', 'FMA': '1'}}
    """
    found: dict[str, dict[str, str]] = {}
    device = ""
    for part in said.split("|"):
        head, _, rest = part.rpartition(" : ")
        device = head.strip() or device
        name, _, value = rest.partition("=")
        if name.strip():
            found.setdefault(device, {})[name.strip()] = value.strip()
    return found


def metadata(model: Any, key: str) -> str:
    """Return what a loaded model's file says under a key, as text; empty where it says nothing."""
    value = ctypes.create_string_buffer(256)
    found = load_llama_cpp().llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode() if found >= 0 else ""
