"""How llama.cpp names and shapes a model: tensors, numbers, and how positions are rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

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

ATTENTION_INPUTS = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What one kind of model is to llama.cpp."""

    gguf_name: str
    neighbours: bool
    """Whether llama.cpp rotates a head's neighbouring rows; else, as Hugging Face, rows that are half a head apart."""
    norms: Mapping[str, str] = field(default_factory=dict)
    """Names of modules that a Llama's layer has not."""
    biases: frozenset[str] = frozenset()
    """Modules that llama.cpp knows a bias of."""
    scalings: frozenset[str] = frozenset({"default", "linear"})
    """Kinds of rope scaling that llama.cpp computes."""

    def tensor(self, name: str) -> str:
        """Return the GGUF name of a Hugging Face tensor; raises ExportError when llama.cpp knows no such tensor.

        >>> ARCHITECTURES["llama"].tensor("model.layers.3.mlp.up_proj.weight")
        'blk.3.ffn_up.weight'
        """
        module, _, kind = name.rpartition(".")
        if module in OUTER_NAMES and kind == "weight":
            return f"{OUTER_NAMES[module]}.weight"
        match module.split(".", 3):
            case ["model", "layers", layer, inner] if kind == "weight" or (kind == "bias" and inner in self.biases):
                if known := LAYER_NAMES.get(inner) or self.norms.get(inner):
                    return f"blk.{layer}.{known}.{kind}"
        fix = "take a plain base, without parts that were added"
        raise ExportError(name, f"GGUF's {self.gguf_name} has no such tensor", fix=fix)

    def permuted(self, name: str, config: Mapping[str, Any]) -> int | None:
        """Return for which number of heads `interleave` must reorder the rows of a module or tensor; None for none.

        >>> config = {"num_attention_heads": 32, "num_key_value_heads": 8}
        >>> ARCHITECTURES["llama"].permuted("model.layers.3.self_attn.k_proj.bias", config)
        8
        >>> ARCHITECTURES["qwen2"].permuted("model.layers.3.self_attn.k_proj", config)
        """
        if not self.neighbours:
            return None
        if ".self_attn.q_proj" in name:
            return int(config["num_attention_heads"])
        return kv_heads(config) if ".self_attn.k_proj" in name else None


LLAMA = Architecture(
    gguf_name="llama",
    neighbours=True,
    biases=frozenset(name for name in LAYER_NAMES if name.endswith("_proj")),
    scalings=frozenset({"default", "linear", "llama3"}),
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture(gguf_name="qwen2", neighbours=False, biases=ATTENTION_INPUTS),
    "qwen3": Architecture(
        gguf_name="qwen3",
        neighbours=False,
        norms={"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
    ),
}
"""By the `model_type` in config.json."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return what a base is to llama.cpp; `base.check_base` has refused those that are not here."""
    return ARCHITECTURES[config["model_type"]]


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
    return float(config.get("rope_theta", 10000.0))


def kv_heads(config: Mapping[str, Any]) -> int:
    """Return how many heads keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
