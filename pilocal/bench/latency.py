"""Three ways of asking, side by side: the full prompt cold, the same with its prefix kept, the bare query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from pilocal.bench.prompts import Prompts
from pilocal.evaluate.arms import BY_BENCH, SHIPPED, Arm, Prompt, Variant
from pilocal.llamacpp.batch_engine import Answered, BatchEngine
from pilocal.llamacpp.context import BATCH, Context
from pilocal.llamacpp.model import Model
from pilocal.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Weights:
    """Which files answer."""

    base: Path
    """Answers the full prompt."""
    shipped: Path
    """Answers the bare query."""
    adapter: Path | None
    """Is applied to `shipped`."""


def measure(
    weights: Weights,
    prompts: Prompts,
    clients: Sequence[int],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return what bench.json says: each arm's times at each number of clients, and the memory of its KV cache.

    Each number of clients shares all requests; a client asks again once it has its answer. Every context first answers
    one short request that does not count. `kv_bytes` is computed from the most tokens that were kept at once,
    `kv_bytes_of_a_request` is llama.cpp's own count for one. Raises ModelError when llama.cpp refuses a file, RunError
    when there is not enough memory.
    """
    arms: dict[str, Any] = {}
    longest = prompts.longest_answer
    for variant, gguf, adapter in (
        (Variant.BASE, weights.base, None),
        (Variant.SHIPPED, weights.shipped, weights.adapter),
    ):
        with Model(gguf, adapter) as model:
            for arm in (arm for arm in BY_BENCH.values() if arm.variant is variant):
                asked = prompts.full if arm.prompt is Prompt.FULL else prompts.bare
                prefix = len(prompts.prefix) if arm.warm else 0
                arms[arm.bench] = _arm(arm, model, asked, prefix, longest, clients, threads, progress)
    bare = arms[SHIPPED.bench]["clients"]
    for measured in arms.values():
        for count, row in measured["clients"].items():
            row["ttft_ratio"] = row["ttft_ms"]["median"] / bare[count]["ttft_ms"]["median"]
    return {
        "requests": len(prompts.bare),
        "max_tokens": prompts.longest_answer,
        "threads": threads or os.cpu_count(),
        "arms": arms,
    }


def _arm(
    arm: Arm,
    model: Model,
    prompts: Sequence[Sequence[int]],
    prefix: int,
    max_tokens: int,
    clients: Sequence[int],
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    longest = max(map(len, prompts)) + max_tokens
    rows = {}
    for count in clients:
        done = partial(progress, f"{arm.title}, {count} at once", total=len(prompts))
        with BatchEngine(model, clients=count, longest=longest, prefix=prefix, threads=threads) as engine:
            engine.answer([prompts[-1][: prefix + 1]], max_tokens=2)
            answered, seconds = engine.answer(prompts, max_tokens=max_tokens, done=done)
            rows[str(count)] = _row(answered, seconds) | {"kv_bytes": engine.peak_tokens * model.kv_bytes}
    return {
        "file": model.path.name,
        "prompt_tokens": mean(map(len, prompts)),
        "shared_tokens": prefix,
        "kv_bytes_per_token": model.kv_bytes,
        "kv_bytes_of_a_request": _bytes_of(model, prompts[-1], longest),
        "clients": rows,
    }


def _bytes_of(model: Model, prompt: Sequence[int], longest: int) -> int:
    """Return how many bytes llama.cpp itself counts for the keys and values of a prompt and the longest answer."""
    with Context(model, longest) as context:
        tokens = [*prompt, *[prompt[-1]] * (longest - len(prompt))]
        for begin in range(0, len(tokens), BATCH):
            part = enumerate(tokens[begin : begin + BATCH], begin)
            context.decode([(token, place, 0, False) for place, token in part])
        return context.sequence_bytes(0)


def _row(answered: Sequence[Answered], seconds: float) -> dict[str, Any]:
    return {
        "ttft_ms": _spread([each.ttft for each in answered]),
        "latency_ms": _spread([each.total for each in answered]),
        "requests_per_second": len(answered) / seconds,
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": 1000 * median(seconds), "p90": 1000 * float(np.quantile(seconds, 0.9))}
