"""llama.cpp's own quantizer, run in this process."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from pilocal.errors import ExportError, did_you_mean
from pilocal.llamacpp.library import collected_errors, load_llama_cpp
from pilocal.run_folder.files import disk_error

PREFIX = "LLAMA_FTYPE_MOSTLY_"


def check_quant(quant: str, where: str = "quant") -> int:
    """Return llama.cpp's number of a type such as "q8_0"; raises ExportError, with the known ones, for any other."""
    llama_cpp = load_llama_cpp()
    file_type = getattr(llama_cpp, PREFIX + quant.upper(), None)
    if file_type is None:
        known = [name.removeprefix(PREFIX).lower() for name in dir(llama_cpp) if name.startswith(PREFIX)]
        raise ExportError(where, "llama.cpp has no such type", got=quant, fix=did_you_mean(quant, known))
    return int(file_type)


def quantize_gguf(source: Path, out: Path, quant: str) -> None:
    """Write `source`, an F16 GGUF, to `out` in a type of llama.cpp's, such as "q8_0".

    `out` appears once it is whole. Raises ExportError when llama.cpp has no such type or reports an error, RunError
    when the disk is full.
    """
    llama_cpp = load_llama_cpp()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = check_quant(quant)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with collected_errors() as errors:
            failed = llama_cpp.llama_model_quantize(bytes(source), bytes(temporary), ctypes.byref(params))
        if failed and shutil.disk_usage(out.parent).free < 1 << 20:
            raise disk_error(out, OSError(errno.ENOSPC, "no space left"))
        if failed:
            fix = "check the free disk space and the base, then export again"
            raise ExportError(out, f"llama.cpp cannot quantize to {quant}", got=" ".join(errors), fix=fix)
        try:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(out)
        except OSError as error:
            raise disk_error(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)
