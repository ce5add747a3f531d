"""The kinds of model that are supported: one record per `model_type`.

To support another kind, add its record to ARCHITECTURES, and a base of it to tests/test_architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pilocal.base.architecture import ALWAYS, LONGROPE, MATRICES, YARN, Architecture, head_dim

_ATTENTION = {f"self_attn.{part}_proj": "attention_bias" for part in "qkvo"}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_FOUR_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_MLP = {f"mlp.{part}_proj": "mlp_bias" for part in ("gate", "up", "down")}
_SCALINGS = frozenset({"default", "linear"})

LLAMA = Architecture(
    causal="LlamaForCausalLM",
    gguf_name="llama",
    neighbours=True,
    biases={**_ATTENTION, **_MLP},
    scalings=_SCALINGS | {"llama3"},
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, causal="MistralForCausalLM", windows=True),
    "granite": replace(
        LLAMA,
        causal="GraniteForCausalLM",
        gguf_name="granite",
        scalings=_SCALINGS,
        multipliers={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "logits_scaling": "logit_scale",
            "residual_multiplier": "residual_scale",
        },
    ),
    "smollm3": replace(LLAMA, causal="SmolLM3ForCausalLM", gguf_name="smollm3", unrotated=4),
    "qwen2": Architecture(
        causal="Qwen2ForCausalLM",
        gguf_name="qwen2",
        neighbours=False,
        biases={f"self_attn.{part}_proj": ALWAYS for part in "qkv"},
        scalings=_SCALINGS | {YARN},
        rope_theta=1_000_000.0,
    ),
    "qwen3": Architecture(
        causal="Qwen3ForCausalLM",
        gguf_name="qwen3",
        neighbours=False,
        norms=_HEAD_NORMS,
        scalings=_SCALINGS | {YARN},
        reads_rope_parameters=True,
    ),
    "qwen3_moe": Architecture(
        causal="Qwen3MoeForCausalLM",
        gguf_name="qwen3moe",
        neighbours=False,
        matrices={name: gguf for name, gguf in MATRICES.items() if name.startswith("self_attn.")},
        norms=_HEAD_NORMS,
        experts=True,
        scalings=frozenset({"default"}),
        settings={
            "hidden_act": ("silu", "swish"),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([], None),
            "attention_bias": (False, None),
        },
        required=("head_dim", "num_key_value_heads"),
    ),
    "phi3": replace(
        LLAMA,
        causal="Phi3ForCausalLM",
        gguf_name="phi3",
        neighbours=False,
        matrices={
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        biases={},
        scalings=frozenset({"default", LONGROPE}),
        windows=True,
        partial_rotary=True,
    ),
    "gemma3_text": Architecture(
        causal="Gemma3ForCausalLM",
        gguf_name="gemma3",
        neighbours=False,
        layer_norms=_FOUR_NORMS,
        norms=_HEAD_NORMS,
        norm_offset=1.0,
        settings={
            **dict.fromkeys(("hidden_act", "hidden_activation"), ("gelu_pytorch_tanh", None)),
            **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (None,)),
            **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), (6,)),
            "use_bidirectional_attention": (False, None),
            "attention_bias": (False, None),
        },
        rope_theta=1_000_000.0,
        required=("head_dim", "num_key_value_heads", "sliding_window"),
        full_every=6,
        local_theta=10_000.0,
        scales_embeddings=True,
    ),
    "ministral3": replace(
        LLAMA,
        causal="Ministral3ForCausalLM",
        gguf_name="mistral3",
        biases={},
        scalings=frozenset({"default", YARN}),
        windows=True,
        required=("head_dim",),
        reads_rope_parameters=True,
        reads_yarn=True,
        scales_queries=True,
    ),
    "gemma4_text": Architecture(
        causal="Gemma4ForCausalLM",
        gguf_name="gemma4",
        neighbours=False,
        matrices={**MATRICES, "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj"},
        layer_norms={**_FOUR_NORMS, "post_per_layer_input_norm": "post_norm"},
        norms=_HEAD_NORMS,
        scalars={"layer_scalar": "layer_output_scale"},
        settings={
            **dict.fromkeys(("hidden_act", "hidden_activation"), ("gelu_pytorch_tanh", None)),
            "use_bidirectional_attention": (False, None, "vision"),
            "attention_bias": (False, None),
        },
        reads_rope_parameters=True,
        required=("global_head_dim", "head_dim", "num_key_value_heads", "sliding_window"),
        multipliers={"final_logit_softcapping": "final_logit_softcapping"},
        unlike_layers=True,
    ),
}
"""By the `model_type` in config.json; all that can be trained, exported and served."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the record of a model of which config.json says this; `Base.check` has refused those that are not here."""
    return ARCHITECTURES[config["model_type"]]


def local_theta(config: Mapping[str, Any]) -> float:
    """Return the base of the rope in layers with a window, of a kind that has one of their own."""
    return float(config.get("rope_local_base_freq") or architecture_of(config).local_theta or 0.0)


def rotated(config: Mapping[str, Any]) -> int:
    """Return how many dimensions of a head are rotated."""
    part = config.get("partial_rotary_factor") if architecture_of(config).partial_rotary else None
    return int(head_dim(config) * (1.0 if part is None else part))
