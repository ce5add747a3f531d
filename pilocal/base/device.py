"""What MLX computes on here, and how much memory there is."""

from __future__ import annotations

import os

from pilocal.base.blas import load_fast_blas

LARGE = 36 << 30
"""Bytes of unified memory from which on Metal lends three quarters of them; below, two thirds."""


def on_cpu() -> bool:
    """Tell whether MLX computes on the CPU."""
    load_fast_blas()  # before MLX is imported
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu


def keeps_packed() -> bool:
    """Tell whether packed weights are computed with as they are: wherever MLX is fast at it, forwards and backwards.

    Its CPU is not, and its CUDA has lacked one or the other (https://github.com/ml-explore/mlx/issues/2536): the device
    is asked.
    """
    import mlx.core as mx

    if on_cpu():
        return False
    packed = mx.quantize(mx.ones((64, 64)), group_size=64, bits=4)

    def loss(states: mx.array) -> mx.array:
        return mx.quantized_matmul(states, *packed, group_size=64, bits=4).sum()

    try:
        mx.eval(mx.grad(loss)(mx.ones((64, 64))))
    except (RuntimeError, ValueError):
        return False
    return True


def machine_memory() -> int:
    """Return how many bytes a training may use: Metal's working set, or all that the machine has."""
    import mlx.core as mx

    if size := mx.device_info().get("max_recommended_working_set_size"):
        return int(size)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lent_memory(unified: int) -> int:
    """Return how many bytes Metal lends a training at least, on a Mac with so many bytes of unified memory.

    That is its `recommendedMaxWorkingSetSize`, as llama.cpp and MLX log it on Macs: 10.7 of 16 GiB, 21.3 of 32, 27 of
    36, 48 of 64, 96 of 128. Newer versions of macOS lend more (25 of 32, 107.5 of 128), so what fits by this does.

    >>> [round(lent_memory(size << 30) / 2**30, 1) for size in (16, 32, 36, 64, 128)]
    [10.7, 21.3, 27.0, 48.0, 96.0]
    """
    return unified * 3 // 4 if unified >= LARGE else unified * 2 // 3
