"""The numbers that llama.cpp builds a model from, and how it rotates positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from pilocal.base.architecture import architecture_of, kv_heads
from pilocal.errors import ExportError
from pilocal.run_folder.tensors import Float32


def interleave(rows: Float32, heads: int) -> Float32:
    """Reorder the rows of q_proj or k_proj, (heads * head_dim, ...), to the order that llama.cpp rotates.

    Hugging Face rotates row i of a head with row i + head_dim / 2; llama.cpp rotates neighbours.

    >>> interleave(np.arange(8, dtype=np.float32), heads=2).astype(int).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_factors(config: Mapping[str, Any]) -> Float32 | None:
    """Return what each rotation frequency is divided by, (head_dim / 2,), or None where all are treated alike.

    Source: Llama 3.1's frequency-dependent scaling (`rope_type` "llama3"). Short waves stay, waves longer than the
    original context are stretched by `factor`, the ones between in between. Raises ExportError for a scaling that
    llama.cpp does not compute.
    """
    scaling, kind = config.get("rope_scaling") or {}, _scaling(config)
    if kind not in architecture_of(config).scalings:
        fix = "take a base without it"
        raise ExportError("rope_scaling", "this kind cannot be exported", got=kind, fix=fix)
    if kind != "llama3":
        return None
    waves = 2 * np.pi * _rope_theta(config) ** (np.arange(0, _head_dim(config), 2) / _head_dim(config))
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((scaling["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors: Float32 = (1 / (keep + (1 - keep) / scaling["factor"])).astype(np.float32)
    return factors


def add_numbers(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
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
    if _scaling(config) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config["rope_scaling"]["factor"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _scaling(config: Mapping[str, Any]) -> str:
    scaling = config.get("rope_scaling") or {}
    return str(scaling.get("type") or scaling.get("rope_type") or "default")


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope_theta(config: Mapping[str, Any]) -> float:
    return float(config.get("rope_theta") or architecture_of(config).rope_theta)
