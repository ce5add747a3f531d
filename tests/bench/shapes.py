"""Checkpoints of real shapes with random weights: what does not depend on the numbers can be measured on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tests import vocabularies

GROUP = 64

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
    },
}
"""Llama 3.1's 8B, Llama 3.2's 1B, and one whose steps take a CPU seconds."""

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": ROPE,
        "tie_word_embeddings": False,
        "quantization": {"group_size": GROUP, "bits": 4, "mode": "affine"},
    }
)


def write_checkpoint(folder: Path, shape: str, llama3: Path | None, seed: int = 0) -> Path:
    """Write a 4-bit MLX checkpoint with bfloat16 scales, tensor by tensor.

    `llama3` holds the vocabulary's files; without it there is no tokenizer.
    """
    config = {**COMMON, **SHAPES[shape]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if llama3:
        vocabularies.llama3(folder, llama3)
    stored = dict(entries(config))
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (dtype, dims) in stored.items():
        begin, end = end, end + math.prod(dims) * (4 if dtype == "U32" else 2)
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, dims) in stored.items():
            file.write(_random(rng, name, dtype, dims))
    return folder


def entries(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """Yield every stored tensor's name, type and shape."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def packed(module: str, out: int, into: int) -> Iterator[tuple[str, tuple[str, list[int]]]]:
        yield f"{module}.weight", ("U32", [out, into // 8])
        yield f"{module}.scales", ("BF16", [out, into // GROUP])
        yield f"{module}.biases", ("BF16", [out, into // GROUP])

    yield from packed("model.embed_tokens", rows, hidden)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for part, out in (("q", hidden), ("k", keys), ("v", keys), ("o", hidden)):
            yield from packed(f"{layer}.self_attn.{part}_proj", out, hidden)
        yield from packed(f"{layer}.mlp.gate_proj", inner, hidden)
        yield from packed(f"{layer}.mlp.up_proj", inner, hidden)
        yield from packed(f"{layer}.mlp.down_proj", hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", ("BF16", [hidden])
    yield "model.norm.weight", ("BF16", [hidden])
    if not config["tie_word_embeddings"]:
        yield from packed("lm_head", rows, hidden)


def _random(rng: np.random.Generator, name: str, dtype: str, dims: list[int]) -> bytes:
    """Return random numbers that make a model whose activations stay finite."""
    count = math.prod(dims)
    if dtype == "U32":
        return rng.integers(0, 2**32, count, dtype=np.uint32).tobytes()
    if len(dims) == 1:
        floats = np.ones(count, dtype=np.float32)
    elif name.endswith("scales"):
        floats = rng.uniform(0.002, 0.008, count).astype(np.float32)
    else:
        floats = rng.uniform(-0.05, -0.02, count).astype(np.float32)
    return (floats.view(np.uint32) >> 16).astype(np.uint16).tobytes()
