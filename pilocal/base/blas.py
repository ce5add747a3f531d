"""A fast BLAS for MLX on a Linux CPU.

The mlx-cpu wheel links the reference BLAS, 5 to 60 times slower than OpenBLAS. A library that is loaded with global
visibility before MLX answers MLX's BLAS calls instead; no environment variable and no root rights are needed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from pilocal.packages import file_beside, keep_torch_apart, torch_library

FASTER = 1.6
"""How many times faster than the reference BLAS such products have to be; OpenBLAS and PyTorch are 2.3 to 10 times."""

SIZE, PRODUCTS = 64, 32
"""Rows and columns of the matrices that are measured, so small that one thread multiplies them, and how many at once:
the reference BLAS takes 3 to 12 ms for all of them."""

TURNS = 7
"""How often that is measured."""

BUSY = 2.0
"""How many times faster than all threads one has to be for a machine to count as busy. Quiet, all are the faster."""

OPENBLAS = "libopenblas.so.0"
"""The system's, as Debian, Ubuntu and Fedora name it."""

CORE = "OPENBLAS_CORETYPE"
"""The variable that tells OpenBLAS for which processors' kernels to compute."""

OLD_CORES = ("Generic", "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom")
"""What OpenBLAS takes an Intel processor for that is newer than itself: kernels without AVX, 2 to 5 times slower."""

NEWER_CORES = (("SkylakeX", "avx512f avx512bw avx512cd avx512dq avx512vl"), ("Haswell", "avx2 fma"))
"""Kernels that all versions have, the fastest first, each with the flags of the processors that can run them."""

ASK_CORE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.openblas_get_corename.restype = ctypes.c_char_p
print(library.openblas_get_corename().decode())
"""
"""A program that prints the kernels that OpenBLAS chooses by itself."""

FIX = "apt install libopenblas0-pthread, or pip install 'pilocal[torch]', whose BLAS does as well"


def load_fast_blas() -> str | None:
    """Make MLX's later products use a fast BLAS; return its name, or None where MLX needs none or there is none.

    Tries the system's OpenBLAS, then the BLAS inside PyTorch's CPU library. Does nothing once MLX is loaded, since it
    is too late then. PyTorch is kept apart from it.
    """
    keep_torch_apart()
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    for find in (lambda: OPENBLAS, torch_library):
        name = find()
        if name is None:
            continue
        try:
            with _core_named(newer_core(name) if name == OPENBLAS and not _is_loaded(name) else None):
                library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        # MLX calls cblas_sgemm. PyTorch's library need not have it: the reference BLAS's own then calls sgemm_.
        if hasattr(library, "sgemm_"):
            return name
    return None


def named_blas() -> str:
    """Return the name of the BLAS that MLX computes with on this CPU, and its version where it tells one."""
    if sys.platform == "darwin":
        return "Accelerate"
    try:
        library = ctypes.CDLL(OPENBLAS)
        library.openblas_get_config.restype = ctypes.c_char_p
        return " ".join(library.openblas_get_config().decode().split()[:2])
    except (OSError, AttributeError):
        return "PyTorch's" if torch_library() else "reference"


def _is_loaded(library: str) -> bool:
    """Tell whether this process has loaded a library."""
    try:
        return bool(ctypes.CDLL(library, mode=os.RTLD_NOLOAD))
    except OSError:
        return False


def newer_core(library: str, flags: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the kernels that this processor can run where an OpenBLAS does not know it and takes old ones, or None.

    Debian 12's (0.3.21) takes Emerald Rapids for a Prescott of 2004. None also where OPENBLAS_CORETYPE says something.
    OpenBLAS chooses while it is loaded and cannot be unloaded safely, so that a process of its own asks it, in 0.02 s.
    """
    if CORE in os.environ:
        return None
    has = processor_flags(flags)
    try:
        fit = next((core for core, needed in NEWER_CORES if has.issuperset(needed.split())), None)
        if fit is None:
            return None
        asked = [sys.executable, "-I", "-S", "-c", ASK_CORE, library]
        core = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return fit if core in OLD_CORES else None


def processor_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what Linux says an x86 processor can do, such as "avx2"; nothing elsewhere."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), ()))


@contextmanager
def _core_named(core: str | None) -> Iterator[None]:
    """Tell the OpenBLAS that is loaded meanwhile its kernels, and no other after it, such as NumPy's."""
    if core is None:
        yield
        return
    os.environ[CORE] = core
    try:
        yield
    finally:
        del os.environ[CORE]


def choose_threads(width: int) -> int | None:
    """Make OpenBLAS compute in one thread if that is far faster now than in all, else in all; return 1 or None.

    Beside other work on every core its threads wait 10 to 20 ms for each other at every product, so that a training
    step took 17 times as long as on a quiet machine; in one thread it takes 2 to 4 times as long. Measured on products
    of 256 rows and `width` columns. Leaves alone what an environment variable says, and every other BLAS. One thread
    rounds some products differently than several do.
    """
    if _openblas() is None or _all_threads() < 2:
        return None
    import mlx.core as mx

    if mx.default_device().type != mx.DeviceType.cpu:
        return None
    width = min(width, 1024)
    rows, matrix = mx.ones((256, width)), mx.ones((width, width))
    mx.eval(rows, matrix)

    def seconds(threads: int | None) -> float:
        set_threads(threads)
        taken = []
        for _ in range(TURNS):
            began = time.perf_counter()
            mx.eval(rows @ matrix)
            taken.append(time.perf_counter() - began)
        return median(taken)

    one, several = seconds(1), seconds(None)
    chosen = 1 if several > BUSY * one else None
    set_threads(chosen)
    return chosen


def set_threads(count: int | None) -> None:
    """Make OpenBLAS compute in so many threads, or in all, unless an environment variable says in how many."""
    if library := _openblas():
        library.openblas_set_num_threads(count or _all_threads())


@cache
def _all_threads() -> int:
    """Return in how many threads OpenBLAS computes by itself; asked before the number is changed."""
    library = _openblas()
    return library.openblas_get_num_threads() if library else 1


def _openblas() -> Any:
    """Return the system's OpenBLAS if this process has loaded it and no variable sets its threads, or None."""
    if sys.platform != "linux" or {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():
        return None
    return ctypes.CDLL(OPENBLAS) if _is_loaded(OPENBLAS) else None


@cache
def warn_of_slow_blas() -> None:
    """Log one warning, with what mends it, where MLX's products on this CPU run in the reference BLAS."""
    ratio = speed_over_reference()
    if ratio is not None and ratio < FASTER:
        what = "MLX computes with the reference BLAS, many times slower than OpenBLAS"
        logging.getLogger(__name__).warning("warning: %s; %s", what, FIX)


def speed_over_reference() -> float | None:
    """Return how many times faster than the reference BLAS MLX's products of small float32 matrices are.

    Measured side by side, each at its best, in processor time, so that neither the machine's speed nor other work
    counts. None where MLX does not compute on a Linux CPU, or its reference BLAS is not there.
    """
    reference = file_beside("mlx", "mlx_cpu.libs/libblas-*.so*") if sys.platform == "linux" else None
    if reference is None:
        return None
    import mlx.core as mx

    if mx.default_device().type != mx.DeviceType.cpu:
        return None
    zeros, product = mx.zeros((SIZE, SIZE)), _product(ctypes.CDLL(str(reference)))

    def in_mlx() -> None:
        found = zeros
        for _ in range(PRODUCTS):
            found = found @ zeros
        mx.eval(found)

    def in_reference() -> None:
        for _ in range(PRODUCTS):
            product()

    best = [float("inf")] * 2
    for _ in range(TURNS):
        for which, multiply in enumerate((in_mlx, in_reference)):
            began = time.process_time()
            multiply()
            best[which] = min(best[which], time.process_time() - began)
    return best[1] / best[0]


def _product(library: ctypes.CDLL) -> Callable[[], Any]:
    """Return what multiplies two matrices of zeros through a library's Fortran symbol."""
    matrices = [(ctypes.c_float * SIZE**2)() for _ in range(3)]
    size, one, plain = ctypes.byref(ctypes.c_int(SIZE)), ctypes.byref(ctypes.c_float(1.0)), ctypes.c_char_p(b"N")
    a, b, c = matrices
    return lambda: library.sgemm_(plain, plain, size, size, size, one, a, size, b, size, one, c, size, 1, 1)
