"""Time to the first token of a real shape: the full prompt, the same with a warm prefix cache, the bare query.

The weights are random, which changes no time; the shapes are Llama 3.2's 1B and Llama 3.1's 8B in Q4_1 with their own
vocabulary, whose folder PILOCAL_LLAMA3 names. An adapter of rank 16 on every linear layer answers the bare query.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pilocal.base.base import Base
from pilocal.bench.latency import Weights, measure
from pilocal.bench.prompts import Prompts
from pilocal.evaluate.arms import BY_BENCH
from pilocal.export.lora import export_adapter
from pilocal.export.lossless import export_lossless
from pilocal.export.tensors import Entry, write_tensors
from pilocal.export.weights import BaseWeights
from tests.bench.shapes import write_checkpoint

RANK = 16
THREADS = 1
"""Threads that wait for one another would measure whoever else is on the machine."""
QUERY, ANSWER = 40, 16
"""Tokens of a query with the marks of its turn, and of an answer."""


def latency(llama3: Path, shape: str, templates: Sequence[int], requests: int) -> dict[str, Any]:
    """Return each arm's times and memory for templates of some lengths in tokens, one client at a time."""
    found, requests = {}, max(2, requests)  # one prompt alone would be its own prefix
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = Base.at(write_checkpoint(folder / "base", shape, llama3))
        adapter = export_adapter(base, write_adapter(folder, base), folder / "adapter.gguf", name=shape)
        gguf = export_lossless(base, folder).path
        (base.folder / "model.safetensors").unlink()
        for length in templates:
            result = measure(Weights(gguf, gguf, adapter), random_prompts(length, requests), [1], threads=THREADS)
            found[str(length)] = result["arms"]
            print("\n".join(lines(length, result["arms"])), file=sys.stderr, flush=True)
    return {"title": f"latency {shape}", "requests": requests, "threads": THREADS, "templates": found}


def random_prompts(template: int, requests: int) -> Prompts:
    """Return queries of random tokens, bare and after the same random template."""
    rng = Random(0)

    def some(length: int) -> list[int]:
        return rng.choices(range(128_000), k=length)

    first, queries = some(template), [some(QUERY) for _ in range(requests)]
    return Prompts([first + query for query in queries], queries, ANSWER)


def write_adapter(folder: Path, base: Base) -> Path:
    """Write random LoRA weights for every linear layer of a base."""
    rng, layout = np.random.default_rng(0), {}
    for name, shape in BaseWeights(base).shapes.items():
        if ".layers." in name and len(shape) == 2:
            layout[name.replace("weight", "lora_a")] = Entry("F32", (shape[1], RANK))
            layout[name.replace("weight", "lora_b")] = Entry("F32", (RANK, shape[0]))
    tensors = (rng.normal(0, 0.01, entry.shape).astype(np.float32) for entry in layout.values())
    write_tensors(folder / "adapters.safetensors", layout, tensors, {})
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": 2.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def lines(template: int, arms: dict[str, Any]) -> list[str]:
    """Return the arms side by side, as text."""
    rows = [f"{template:>8,} tokens of template  first token, ms  x bare  answer, ms  KV MiB"]
    for name, arm in arms.items():
        row = arm["clients"]["1"]
        first, whole, kept = row["ttft_ms"]["median"], row["latency_ms"]["median"], row["kv_bytes"] / 2**20
        rows.append(
            f"{BY_BENCH[name].short:>34}  {first:>15,.1f}  {row['ttft_ratio']:>6.1f}  {whole:>10,.1f}  {kept:>6.1f}"
        )
    return rows
