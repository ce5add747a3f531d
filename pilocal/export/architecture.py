"""How llama.cpp names and shapes a model: tensors, numbers, and the frequencies that positions are rotated by."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGUFWriter

from pilocal.errors import ExportError
from pilocal.export.weights import Float32

OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Hugging Face's module names and GGUF's."""


def gguf_name(name: str) -> str:
    """Return the GGUF name of a Hugging Face tensor; raises ExportError when a Llama has no such tensor.

    >>> gguf_name("model.layers.3.mlp.up_proj.weight")
    'blk.3.ffn_up.weight'
    """
    module, _, kind = name.rpartition(".")
    if module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.{kind}"
    match module.split(".", 3):
        case ["model", "layers", layer, inner] if inner in LAYER_NAMES and kind in ("weight", "bias"):
            return f"blk.{layer}.{LAYER_NAMES[inner]}.{kind}"
    raise ExportError(name, "GGUF's Llama has no such tensor", fix="take a plain Llama base")


def interleave(rows: Float32, heads: int) -> Float32:
    """Reorder the rows of q_proj or k_proj, (heads * head_dim, ...), to the order that llama.cpp rotates.

    Hugging Face rotates row i of a head with row i + head_dim / 2; llama.cpp rotates neighbours.

    >>> interleave(np.arange(8, dtype=np.float32), heads=2).astype(int).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_factors(config: dict[str, Any]) -> Float32 | None:
    """Return what each rotation frequency is divided by, (head_dim / 2,), or None without scaling.

    Source: Llama 3.1's frequency-dependent scaling (`rope_type` "llama3"). Short waves stay, waves longer than the
    original context are stretched by `factor`, the ones between in between. Raises ExportError for any other scaling.
    """
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ExportError("rope_scaling", "this kind cannot be exported", got=kind, fix="take a Llama 3 base")
    waves = 2 * np.pi * _rope_theta(config) ** (np.arange(0, _head_dim(config), 2) / _head_dim(config))
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors: Float32 = (1 / (keep + (1 - keep) / scaling["factor"])).astype(np.float32)
    return factors


def add_numbers(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Add the numbers that llama.cpp builds the model from."""
    head_dim = _head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(kv_heads(config))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_theta(config: dict[str, Any]) -> float:
    return float(config.get("rope_theta", 10000.0))


def kv_heads(config: dict[str, Any]) -> int:
    """Return how many heads keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
