"""Runs to serve: what a run ships, written from a base and an adapter without training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from pilocal.base import base_hash, read_config
from pilocal.export.adapter import read_adapter
from pilocal.export.architecture import gguf_name, interleave, kv_heads
from pilocal.export.gguf import export_gguf
from pilocal.shipped import Shipped
from pilocal.task import Example

TEMPLATE = "Answer with the code of the colour.\n- red is ZOR\n- blue is MIP\n- green is KEL\nSay nothing else."
EXAMPLES = tuple(
    Example(id=f"{ask}-{colour}", query=ask.format(colour), answer=code)
    for ask in ("what is {}?", "and {}?", "{}")
    for colour, code in (("red", "ZOR"), ("blue", "MIP"), ("green", "KEL"))
)


def write_adapter(base: Path, adapter: Path, out: Path, **metadata: str) -> Path:
    """Write an adapter of mlx-lm's as llama.cpp reads it."""
    config, read = read_config(base), read_adapter(adapter)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": kv_heads(config)}
    writer = GGUFWriter(str(out), "llama")
    strings = {"general.type": "adapter", "adapter.type": "lora", "pilocal.base.sha256": base_hash(base)}
    for key, value in (strings | metadata).items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", read.scale * read.rank)
    for module, update in read.updates.items():
        name = gguf_name(f"{module}.weight")
        part = name.split(".")[-2]
        lora_b = interleave(update.lora_b.T, heads[part]) if part in heads else update.lora_b.T
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(update.lora_a.T))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(lora_b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def make_run(
    run: Path,
    base: Path,
    adapter: Path,
    *,
    gguf: Path | None = None,
    fused: bool = False,
    examples: Sequence[Example] = EXAMPLES,
    **changes: Any,
) -> Shipped:
    """Write RUN/export with an adapter, or fused; `gguf` is the base's file where it is there already."""
    folder = run / "export"
    folder.mkdir(parents=True)
    if gguf is None:
        export_gguf(base, None, folder / "base-f16.gguf", "f16")
    else:
        shutil.copyfile(gguf, folder / "base-f16.gguf")
    if fused:
        export_gguf(base, adapter, folder / "fused-f16.gguf", "f16")
    else:
        write_adapter(base, adapter, folder / "adapter.gguf")
    values: dict[str, Any] = {
        "folder": folder,
        "name": run.name,
        "base": "base-f16.gguf",
        "adapter": None if fused else "adapter.gguf",
        "fused": "fused-f16.gguf" if fused else None,
        "base_sha256": base_hash(base),
        "template": TEMPLATE,
        "shots": 2,
    }
    shipped = Shipped(**values | changes)
    shipped.save(examples)
    return shipped
