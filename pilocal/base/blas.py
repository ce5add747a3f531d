"""A fast BLAS for MLX on a Linux CPU.

The mlx-cpu wheel links the reference BLAS, some 60 times slower than OpenBLAS. A library that is loaded with global
visibility before MLX answers MLX's cblas calls instead; no environment variable and no root rights are needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def load_fast_blas() -> str | None:
    """Make MLX's later cblas calls use a fast BLAS; return its name, or None where MLX needs none or none was found.

    Tries the system's OpenBLAS, then the BLAS inside PyTorch's CPU library. Does nothing once MLX is loaded, since it
    is too late then.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    for name in filter(None, ("libopenblas.so.0", torch_library())):
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):
            return name
    return None


def torch_library() -> str | None:
    """Return the path of libtorch_cpu.so without importing torch, or None."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "lib" / "libtorch_cpu.so"
    return str(path) if path.is_file() else None
