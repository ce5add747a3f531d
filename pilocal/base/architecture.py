"""What sets one kind of model apart: one record per `model_type`, for training, the plan and the export.

To support another kind, add its record to ARCHITECTURES, and a base of it to tests/test_architectures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from pilocal.errors import ExportError

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

ALWAYS = None
"""Instead of a setting: a bias that every such model has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One kind of model."""

    causal: str
    """The class in transformers, as `architectures` in config.json names it."""
    gguf_name: str
    neighbours: bool
    """Whether llama.cpp rotates a head's neighbouring rows; else, as Hugging Face, rows that are half a head apart."""
    norms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """GGUF's names of norms over a head's dimension, which a Llama's layer has not, by Hugging Face's."""
    biases: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Modules that may have a bias, and the setting in config.json that gives it to them, or ALWAYS."""
    scalings: frozenset[str] = frozenset({"default", "linear"})
    """Kinds of rope scaling that llama.cpp computes."""
    rope_theta: float = 10_000.0
    """The base of the rope in mlx-lm where config.json names none."""
    reads_rope_parameters: bool = False
    """Whether mlx-lm by itself reads the rope settings as transformers 5 writes them."""
    windows: bool = False
    """Whether `sliding_window` in config.json is in use unless `use_sliding_window` says otherwise."""
    rotating_caches: bool = False
    """Whether mlx-lm keeps only a window of keys and values in a layer that `layer_types` names sliding."""
    unrotated: int | None = None
    """llama.cpp leaves every so many-th layer without rotation (NoPE), whatever config.json says."""
    multipliers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """GGUF's names of numbers that scale embeddings, scores, residuals and logits, by config.json's."""
    layered: str | None = None
    """mlx-lm's class that `training.mlx.forward` runs layer by layer; None: it runs the model as a whole."""

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

    def biases_and_norms(self, config: Mapping[str, Any], outputs: Mapping[str, int], head_dim: int) -> int:
        """Return how many weights a block has beside its matrices and the two norms that every block has.

        `outputs` are the output dimensions of its linear layers.

        >>> config, outputs = {"mlp_bias": True}, {"self_attn.q_proj": 64, "self_attn.o_proj": 48, "mlp.up_proj": 96}
        >>> [ARCHITECTURES[kind].biases_and_norms(config, outputs, 16) for kind in ("llama", "qwen2", "qwen3")]
        [96, 64, 32]
        """
        biased = (outputs[name] for name, setting in self.biases.items() if name in outputs and _is_on(setting, config))
        return sum(biased) + len(self.norms) * head_dim

    def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a model of this config.json has, by Hugging Face's name.

        >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
        >>> shapes = ARCHITECTURES["qwen2"].shapes({**config, "num_hidden_layers": 1, "vocab_size": 99})
        >>> shapes["model.layers.0.self_attn.k_proj.bias"], len(shapes)
        ((32,), 14)
        """
        width, inner, rows = (int(config[key]) for key in ("hidden_size", "intermediate_size", "vocab_size"))
        size = head_dim(config)
        queries, keys = int(config["num_attention_heads"]) * size, kv_heads(config) * size
        outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner, "up_proj": inner}
        layer: dict[str, tuple[int, ...]] = {}
        for name in LAYER_NAMES:
            module = name.rpartition(".")[2]
            inputs = {"o_proj": queries, "down_proj": inner}.get(module, width)
            layer[f"{name}.weight"] = (outputs.get(module, width), inputs) if module.endswith("_proj") else (width,)
        layer |= {f"{name}.weight": (size,) for name in self.norms}
        on = [name for name, setting in self.biases.items() if _is_on(setting, config)]
        layer |= {f"{name}.bias": layer[f"{name}.weight"][:1] for name in on}
        outer: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
        if not config.get("tie_word_embeddings", True):
            outer["lm_head.weight"] = (rows, width)
        layers = range(int(config["num_hidden_layers"]))
        return outer | {f"model.layers.{i}.{name}": shape for i in layers for name, shape in layer.items()}

    def rotates_as_llama_cpp(self, config: Mapping[str, Any]) -> bool:
        """Tell whether the layers without rotation are those that llama.cpp leaves without; 0 in config.json is one.

        >>> smollm3 = ARCHITECTURES["smollm3"]
        >>> [smollm3.rotates_as_llama_cpp({"num_hidden_layers": 4, **said}) for said in (
        ...     {}, {"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 1, 0, 1]}, {"no_rope_layer_interval": 0})]
        [True, True, False, False]
        """
        if self.unrotated is None:
            return True
        if (said := config.get("no_rope_layers")) is None:
            return bool(config.get("no_rope_layer_interval", self.unrotated) == self.unrotated)
        layers = range(1, int(config["num_hidden_layers"]) + 1)
        return bool(said == [int(layer % self.unrotated != 0) for layer in layers])

    def has_window(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a layer's attention has a window; Qwen's configs name one that is not in use.

        >>> [ARCHITECTURES[kind].has_window({"sliding_window": 4096}) for kind in ("mistral", "qwen2")]
        [True, False]
        """
        if not config.get("sliding_window"):
            return False
        if layers := config.get("layer_types"):
            return "sliding_attention" in layers
        return bool(config.get("use_sliding_window", self.windows))

    def keeps_everything(self, config: Mapping[str, Any]) -> bool:
        """Tell whether mlx-lm keeps the keys and values of all tokens, in every layer."""
        return not self.rotating_caches or "sliding_attention" not in (config.get("layer_types") or ())


def _is_on(setting: str | None, config: Mapping[str, Any]) -> bool:
    return setting is ALWAYS or bool(config.get(setting))


_ATTENTION = {f"self_attn.{part}_proj": "attention_bias" for part in "qkvo"}
_MLP = {f"mlp.{part}_proj": "mlp_bias" for part in ("gate", "up", "down")}

LLAMA = Architecture(
    causal="LlamaForCausalLM",
    gguf_name="llama",
    neighbours=True,
    biases={**_ATTENTION, **_MLP},
    scalings=frozenset({"default", "linear", "llama3"}),
    rotating_caches=True,
    layered="mlx_lm.models.llama.LlamaModel",
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, causal="MistralForCausalLM", windows=True),
    "granite": replace(
        LLAMA,
        causal="GraniteForCausalLM",
        gguf_name="granite",
        scalings=frozenset({"default", "linear"}),
        rotating_caches=False,
        multipliers={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "logits_scaling": "logit_scale",
            "residual_multiplier": "residual_scale",
        },
        layered="mlx_lm.models.granite.GraniteModel",
    ),
    "smollm3": replace(LLAMA, causal="SmolLM3ForCausalLM", gguf_name="smollm3", rotating_caches=False, unrotated=4),
    "qwen2": Architecture(
        causal="Qwen2ForCausalLM",
        gguf_name="qwen2",
        neighbours=False,
        biases={f"self_attn.{part}_proj": ALWAYS for part in "qkv"},
        rope_theta=1_000_000.0,
        layered="mlx_lm.models.qwen2.Qwen2Model",
    ),
    "qwen3": Architecture(
        causal="Qwen3ForCausalLM",
        gguf_name="qwen3",
        neighbours=False,
        norms={"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
        reads_rope_parameters=True,
        layered="mlx_lm.models.qwen3.Qwen3Model",
    ),
}
"""By the `model_type` in config.json; all that can be trained, exported and served."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the record of a model of which config.json says this; `Base.check` has refused those that are not here."""
    return ARCHITECTURES[config["model_type"]]


def kv_heads(config: Mapping[str, Any]) -> int:
    """Return how many heads keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the dimension of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
