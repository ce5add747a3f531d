"""A program that tries one library and writes what it found as JSON; a crash of the library ends it alone.

`python -m pilocal.doctor.probe mlx` loads MLX and multiplies; "torch" does so with PyTorch, "llama.cpp" has the bundled
model answer, in the form in which a run serves it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SMALL, LARGE = 1024, 4096
"""Rows and columns of the matrices that are multiplied: on a CPU, and on a GPU."""

TURNS = 5
"""How often; the best counts."""

TOKENS = 32
"""Tokens that llama.cpp writes."""


def try_mlx() -> dict[str, Any]:
    """Return what MLX computes on and how fast, and which BLAS it has."""
    from pilocal.base.blas import named_blas, speed_over_reference
    from pilocal.base.device import keeps_packed, machine_memory, on_cpu

    cpu = on_cpu()  # loads a fast BLAS before MLX
    import mlx.core as mx

    matrix = mx.ones((SMALL if cpu else LARGE,) * 2)
    mx.eval(matrix)
    facts = {str(name): value for name, value in mx.device_info().items()}
    return {
        "device": "cpu" if cpu else "gpu",
        "name": facts.get("device_name") or facts.get("architecture"),
        "metal": mx.metal.is_available(),
        "cuda": mx.cuda.is_available(),
        "memory": machine_memory(),
        "packed": keeps_packed(),
        "blas": named_blas() if cpu else None,
        "gflops": _gflops(matrix.shape[0], lambda: mx.eval(matrix @ matrix)),
        "over_reference": speed_over_reference(),
    }


def try_torch() -> dict[str, Any]:
    """Return what PyTorch computes on and how fast."""
    from pilocal.packages import keep_torch_apart

    keep_torch_apart()
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    device = "cuda" if cuda else "mps" if mps else "cpu"
    matrix = torch.ones((SMALL if device == "cpu" else LARGE,) * 2, device=device)

    def product() -> None:
        (matrix @ matrix)[0, 0].item()  # waits for the device

    return {
        "device": device,
        "name": torch.cuda.get_device_name(0) if cuda else None,
        "memory": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "built_for_cuda": torch.version.cuda,
        "gflops": _gflops(matrix.shape[0], product),
    }


def try_llama_cpp() -> dict[str, Any]:
    """Return how llama.cpp was built, and how fast the bundled model answers in it."""
    from pilocal.base.base import find_base
    from pilocal.export.lossless import cached_base
    from pilocal.llamacpp.engine import Engine
    from pilocal.llamacpp.library import build_flags, load_llama_cpp

    flags = build_flags()
    base = find_base("starter", Path())
    prompt = [int(token) for token in base.tokenizer.encode("The quick brown fox jumps over the lazy dog.")]
    with Engine(cached_base(base).path, 2 * TOKENS + len(prompt)) as engine:
        how: dict[str, Any] = {"ends": frozenset(), "max_tokens": TOKENS, "progress": lambda *_: None}
        timed = engine.answer([prompt] * 3, warm=True, name="doctor", **how)
    seconds = (timed.latency_ms - timed.ttft_ms) / 1000
    return {
        "flags": flags,
        "gpu": bool(load_llama_cpp().llama_supports_gpu_offload()),
        "starter_tokens_per_second": round((TOKENS - 1) / seconds, 1),
    }


def _gflops(size: int, product: Callable[[], Any]) -> float:
    """Return billions of operations per second, in float32."""
    best = float("inf")
    for _ in range(TURNS):
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return round(2 * size**3 / best / 1e9, 1)


PROBES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "mlx": try_mlx,
    "torch": try_torch,
    "llama.cpp": try_llama_cpp,
}
"""Every probe by the name of what it tries."""


def main() -> None:
    """Try what the first argument names and write one line of JSON, an error's text included."""
    logging.disable()
    try:
        found = PROBES[sys.argv[1]]()
    except Exception as error:
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    sys.stdout.write("\n" + json.dumps(found, default=str) + "\n")


if __name__ == "__main__":
    main()
