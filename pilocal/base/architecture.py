"""What may set one kind of model apart from another, for training, the plan and the export."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pilocal.base.layers import lacking, own_settings, tables, unused
from pilocal.errors import ExportError

OUTER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.embed_tokens_per_layer": "per_layer_token_embd",
    "model.per_layer_model_projection": "per_layer_model_proj",
    "model.per_layer_projection_norm": "per_layer_proj_norm",
}
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
"""Hugging Face's module names and GGUF's."""

EXPERTS = {f"mlp.switch_mlp.{part}_proj": f"ffn_{part}_exps" for part in ("gate", "up", "down")}
"""MLX's names of what all experts of a layer have in one tensor, (experts, out, in), and GGUF's."""

ROUTER = {"mlp.gate": "ffn_gate_inp"}
"""The name of what scores a layer's experts for each token, and GGUF's."""

COUNTS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""What config.json says of experts, and GGUF's names of it."""

LOCAL_THETA = "rope.freq_base_swa"
"""GGUF's name of the base of the rope in layers with a window."""

LONGROPE = "longrope"
"""A scaling with one factor for each frequency up to `original_max_position_embeddings` tokens, and another beyond."""

YARN = "yarn"
"""A scaling that stretches the waves that are long beside the original context, and leaves the short ones."""

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
    matrices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(MATRICES))
    """GGUF's names of a layer's linear layers, by Hugging Face's."""
    layer_norms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(LAYER_NORMS))
    """GGUF's names of norms over a layer's width, by Hugging Face's."""
    norms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """GGUF's names of norms over a head's dimension, which a Llama's layer has not, by Hugging Face's."""
    experts: bool = False
    """Whether each layer's MLP is a mixture of experts; these and what scores them are never adapted."""
    norm_offset: float = 0.0
    """What is added to Hugging Face's norms for GGUF's."""
    biases: Mapping[str, str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Modules that may have a bias, and the setting in config.json that gives it to them, or ALWAYS."""
    scalings: frozenset[str] = frozenset({"default", "linear"})
    """Kinds of rope scaling that llama.cpp computes."""
    rope_theta: float = 10_000.0
    """The base of the rope in mlx-lm where config.json names none."""
    partial_rotary: bool = False
    """Whether `partial_rotary_factor` in config.json may leave a part of each head without rotation."""
    reads_rope_parameters: bool = False
    """Whether mlx-lm by itself reads the rope settings as transformers 5 writes them."""
    reads_yarn: bool = False
    """Whether llama.cpp reads the bounds and the magnitude of yarn in a file; else it takes the usual ones."""
    scales_queries: bool = False
    """Whether queries are scaled by their position, as `llama_4_scaling_beta` among the rope settings says."""
    settings: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: MappingProxyType({"hidden_act": ("silu", "swish")})
    )
    """Values of settings, where config.json has them, that MLX, PyTorch and llama.cpp compute alike."""
    windows: bool = False
    """Whether `sliding_window` in config.json is in use unless `use_sliding_window` says otherwise."""
    full_every: int | None = None
    """llama.cpp computes windows, in all layers but every so many-th; None: it computes none."""
    local_theta: float | None = None
    """The base of the rope in layers with a window where `rope_local_base_freq` names none; None: as in the others."""
    required: tuple[str, ...] = ()
    """Whole numbers that config.json has to name, since not everybody takes the same where it does not."""
    unlike_layers: bool = False
    """Whether config.json names the kind of each layer, and these differ in their shapes."""
    scalars: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """GGUF's names of single numbers of a layer, by Hugging Face's."""
    scales_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of their dimension."""
    unrotated: int | None = None
    """llama.cpp leaves every so many-th layer without rotation (NoPE), whatever config.json says."""
    multipliers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """GGUF's names of numbers that scale embeddings, scores, residuals and logits, by config.json's."""

    def tensor(self, name: str) -> str:
        """Return the GGUF name of a Hugging Face tensor; raises ExportError when llama.cpp knows no such tensor.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> ARCHITECTURES["llama"].tensor("model.layers.3.mlp.up_proj.weight")
        'blk.3.ffn_up.weight'
        """
        module, _, kind = name.rpartition(".")
        if module in OUTER_NAMES and kind == "weight":
            return f"{OUTER_NAMES[module]}.weight"
        match module.split(".", 3):
            case ["model", "layers", layer] if kind in self.scalars:
                return f"blk.{layer}.{self.scalars[kind]}.weight"
            case ["model", "layers", layer, inner] if kind == "weight" or (kind == "bias" and inner in self.biases):
                if known := {**self.matrices, **self._sparse, **self.layer_norms, **self.norms}.get(inner):
                    return f"blk.{layer}.{known}.{kind}"
        fix = "take a plain base, without parts that were added"
        raise ExportError(name, f"GGUF's {self.gguf_name} has no such tensor", fix=fix)

    @property
    def _sparse(self) -> Mapping[str, str]:
        """GGUF's names of what a mixture of experts has instead of an MLP, by MLX's."""
        return {**EXPERTS, **ROUTER} if self.experts else {}

    @property
    def counts(self) -> Mapping[str, str]:
        """GGUF's names of whole numbers that not every model has, by config.json's."""
        return COUNTS if self.experts else {}

    def is_sparse(self, name: str) -> bool:
        """Tell whether a tensor is of a layer's experts, or of what scores them."""
        return name.endswith(tuple(f".{module}.weight" for module in self._sparse))

    def in_float32(self, name: str, shape: Sequence[int]) -> bool:
        """Tell whether llama.cpp keeps a tensor in float32 in every type of file: vectors, and what scores experts.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> ARCHITECTURES["qwen3_moe"].in_float32("model.layers.0.mlp.gate.weight", (128, 2048))
        True
        """
        return len(shape) == 1 or (self.is_sparse(name) and len(shape) == 2)

    def offset(self, name: str) -> float:
        """Return what is added to a tensor of Hugging Face's for GGUF's: 0 for all but some kinds' norms.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> [ARCHITECTURES["gemma3_text"].offset(f"model.{name}.weight") for name in ("norm", "embed_tokens")]
        [1.0, 0.0]
        """
        return self.norm_offset if name.endswith("norm.weight") else 0.0

    def permuted(self, name: str, config: Mapping[str, Any]) -> int | None:
        """Return for which number of heads `interleave` must reorder the rows of a module or tensor; None for none.

        >>> from pilocal.base.architectures import ARCHITECTURES
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

    def parameters(self, config: Mapping[str, Any]) -> int:
        """Return how many weights a model of this config.json has.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
        >>> ARCHITECTURES["qwen2"].parameters({**config, "num_hidden_layers": 1, "vocab_size": 99})
        37376
        """
        return sum(math.prod(shape) for part in (self._outer(config), *self._blocks(config)) for shape in part.values())

    def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a model of this config.json has, by Hugging Face's name.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
        >>> shapes = ARCHITECTURES["qwen2"].shapes({**config, "num_hidden_layers": 1, "vocab_size": 99})
        >>> shapes["model.layers.0.self_attn.k_proj.bias"], len(shapes)
        ((32,), 14)
        """
        return self._outer(config) | {
            f"model.layers.{i}.{name}": shape
            for i, block in enumerate(self._blocks(config))
            for name, shape in block.items()
        }

    def _outer(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor outside the blocks."""
        width, rows = int(config["hidden_size"]), int(config["vocab_size"])
        outer: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
        if not config.get("tie_word_embeddings", True):
            outer["lm_head.weight"] = (rows, width)
        return outer | self.tables(config)

    def tables(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that makes inputs of their own for the layers."""
        return tables(config) if self.unlike_layers else {}

    def unused(self, config: Mapping[str, Any]) -> frozenset[str]:
        """Return the modules of which a base may have weights that no program uses."""
        return unused(config) if self.unlike_layers else frozenset()

    def settings_of_layers(self, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return config.json as each layer means it."""
        layers = range(int(config["num_hidden_layers"]))
        return [{**config, **own_settings(config, i)} if self.unlike_layers else config for i in layers]

    def _blocks(self, config: Mapping[str, Any]) -> list[dict[str, tuple[int, ...]]]:
        """Return each block's shapes."""
        settings = self.settings_of_layers(config)
        if not self.unlike_layers:
            return [self._block(config)] * len(settings)
        return [self._block(own, lacking(config, i)) for i, own in enumerate(settings)]

    def _block(self, config: Mapping[str, Any], lacking: frozenset[str] = frozenset()) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a block, by its name in it; of the modules that it lacks none."""
        width, inner, size = int(config["hidden_size"]), int(config["intermediate_size"]), head_dim(config)
        queries, keys = int(config["num_attention_heads"]) * size, kv_heads(config) * size
        outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": inner, "up_proj": inner}
        own = int(config.get("hidden_size_per_layer_input") or 0)
        outputs |= {"qkv_proj": queries + 2 * keys, "gate_up_proj": 2 * inner, "per_layer_input_gate": own}
        block: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in self._sparse_shapes(config)}
        for name in self.matrices:
            module = name.rpartition(".")[2]
            inputs = {"o_proj": queries, "down_proj": inner, "per_layer_projection": own}.get(module, width)
            block[f"{name}.weight"] = (outputs.get(module, width), inputs)
        block |= {f"{name}.weight": (width,) for name in self.layer_norms}
        block |= {f"{name}.weight": (size,) for name in self.norms}
        block |= dict.fromkeys(self.scalars, (1,))
        on = [name for name, setting in self.biases.items() if _is_on(setting, config)]
        block |= {f"{name}.bias": block[f"{name}.weight"][:1] for name in on}
        return {name: shape for name, shape in block.items() if name.rpartition(".")[0] not in lacking}

    def _sparse_shapes(self, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the shapes of what a mixture of experts has instead of an MLP, by MLX's names."""
        if self.experts:
            width, inner, count = (int(config[key]) for key in ("hidden_size", "moe_intermediate_size", "num_experts"))
            for name in EXPERTS:
                yield name, (count, width, inner) if name.endswith("down_proj") else (count, inner, width)
            yield from ((name, (count, width)) for name in ROUTER)

    def linears(self, config: Mapping[str, Any]) -> list[dict[str, tuple[int, int]]]:
        """Return (inputs, outputs) of every linear layer of each block that may be adapted."""
        named = [(name, f"{name}.weight") for name in self.matrices]
        return [
            {name: (block[weight][1], block[weight][0]) for name, weight in named if weight in block}
            for block in self._blocks(config)
        ]

    def expert_weights(self, config: Mapping[str, Any], *, used: bool = False) -> int:
        """Return how many weights a block's experts have with what scores them; if `used`, those for one token."""
        shapes = dict(self._sparse_shapes(config))
        share = int(config["num_experts_per_tok"]) / int(config["num_experts"]) if used and shapes else 1
        return sum(round(math.prod(shape) * (share if name in EXPERTS else 1)) for name, shape in shapes.items())

    def inner_width(self, config: Mapping[str, Any]) -> int:
        """Return into how many numbers a block's MLP turns a token's, all of its experts together."""
        if self.experts:
            return int(config["num_experts_per_tok"]) * int(config["moe_intermediate_size"])
        return int(config["intermediate_size"])

    def computed_otherwise(self, config: Mapping[str, Any]) -> str | None:
        """Return a setting under which llama.cpp would compute another model, whatever its file says; None for none.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> layers = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64}
        >>> [ARCHITECTURES["smollm3"].computed_otherwise({**layers, **said}) for said in (
        ...     {}, {"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 1, 0, 1]}, {"no_rope_layer_interval": 0})]
        [None, None, 'no_rope_layers', 'no_rope_layer_interval']
        >>> [ARCHITECTURES["gemma3_text"].computed_otherwise({**layers, "head_dim": 256, **said}) for said in (
        ...     {"layer_types": ["sliding_attention"] * 4}, {"layer_types": ["full_attention"] * 4},
        ...     {"query_pre_attn_scalar": 16})]
        [None, 'layer_types', 'query_pre_attn_scalar']
        """
        wrong = [key for key, values in self.settings.items() if key in config and config[key] not in values]
        if self.experts:
            wrong += ["num_experts_per_tok"] * (config["num_experts_per_tok"] > config["num_experts"])
            wrong += ["norm_topk_prob"] * (config.get("norm_topk_prob") is not True)
        layers = range(1, int(config["num_hidden_layers"]) + 1)
        if (every := self.unrotated) is not None:
            if (said := config.get("no_rope_layers")) is not None:
                wrong += ["no_rope_layers"] * (said != [int(layer % every != 0) for layer in layers])
            else:
                wrong += ["no_rope_layer_interval"] * (config.get("no_rope_layer_interval", every) != every)
        if (every := self.full_every) is not None:
            kinds = ["sliding_attention" if layer % every else "full_attention" for layer in layers]
            wrong += ["layer_types"] * (config.get("layer_types") not in (None, kinds))
            wrong += ["query_pre_attn_scalar"] * (config.get("query_pre_attn_scalar", 256) != score_scale(config))
        return wrong[0] if wrong else None

    def has_window(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a layer's attention has a window that llama.cpp does not compute.

        Qwen's configs name one that is not in use.

        >>> from pilocal.base.architectures import ARCHITECTURES
        >>> [ARCHITECTURES[kind].has_window({"sliding_window": 4096}) for kind in ("mistral", "qwen2")]
        [True, False]
        """
        if not config.get("sliding_window") or self.full_every is not None or self.unlike_layers:
            return False
        if layers := config.get("layer_types"):
            return "sliding_attention" in layers
        return bool(config.get("use_sliding_window", self.windows))


def expert_of(name: str) -> tuple[str, int] | None:
    """Return MLX's name of what all experts of a layer have in one tensor, and which expert has the one of a name.

    Hugging Face's files hold each expert's weights alone. None for all other names.

    >>> expert_of("model.layers.3.mlp.experts.7.up_proj.weight")
    ('model.layers.3.mlp.switch_mlp.up_proj.weight', 7)
    """
    if not (found := re.fullmatch(r"(.+\.mlp)\.experts\.(\d{1,9})\.(.+)", name)):
        return None
    return f"{found[1]}.switch_mlp.{found[3]}", int(found[2])


def score_scale(config: Mapping[str, Any]) -> int:
    """Return whose inverse root llama.cpp scales a Gemma's scores by: it tells the one of 27B by its layers."""
    if config["num_hidden_layers"] == 62:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return head_dim(config)


def _is_on(setting: str | None, config: Mapping[str, Any]) -> bool:
    return setting is ALWAYS or bool(config.get(setting))


def kv_heads(config: Mapping[str, Any]) -> int:
    """Return how many heads keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the dimension of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
