"""Layers that are not alike, as Gemma 4 has them: what config.json says of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError

SLIDING, FULL = "sliding_attention", "full_attention"
"""Kinds of layers: one sees a window of the last tokens, the other sees them all."""

ROPES: Mapping[str, Mapping[str, Any]] = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
}
"""The rope of each kind of layer where config.json names none."""

KEYS_VALUES = frozenset(f"self_attn.{name}" for name in ("k_proj", "v_proj", "k_norm"))
"""The modules that make keys and values."""

MAY_BE_0 = ("num_kv_shared_layers", "hidden_size_per_layer_input")
"""Whole numbers that may be 0, and are not 0 in every program where they are left out."""

MOST_HEAD = 2**16
"""Dimensions of a head."""

FIX = "take a base that is as its kind was released"


def settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with all settings of its layers under the names that mlx-lm reads.

    transformers may write what is a layer's own as `per_layer_config`, by the layer's number.
    """
    made = dict(config)
    if made.get("rope_parameters") is None:
        made["rope_parameters"] = {kind: dict(rope) for kind, rope in ROPES.items()}
    own = made.pop("per_layer_config", None)
    if isinstance(own, dict) and own:
        alike = next(iter(own.values()))
        if isinstance(alike, dict) and all(each == alike for each in own.values()):
            made.setdefault("global_head_dim", alike.get("head_dim"))
            made.setdefault("num_global_key_value_heads", alike.get("num_key_value_heads"))
    return made


def kinds(config: Mapping[str, Any]) -> list[str]:
    """Return the kind of every layer."""
    return [str(kind) for kind in config["layer_types"]]


def own_settings(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Return what stands in for config.json's settings in one layer: the sizes of its heads, their number.

    >>> config = {"layer_types": [SLIDING, FULL], "head_dim": 16, "num_key_value_heads": 4, "num_kv_shared_layers": 0,
    ...     "global_head_dim": 32, "num_global_key_value_heads": 2, "attention_k_eq_v": True}
    >>> [own_settings(config, layer) for layer in (0, 1)]
    [{}, {'head_dim': 32, 'num_key_value_heads': 2}]
    """
    own: dict[str, Any] = {}
    if kinds(config)[layer] == FULL:
        heads = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        own = {"head_dim": config["global_head_dim"], "num_key_value_heads": heads or config["num_key_value_heads"]}
    if config.get("use_double_wide_mlp") and layer >= first_sharing(config):
        own["intermediate_size"] = 2 * config["intermediate_size"]
    return own


def first_sharing(config: Mapping[str, Any]) -> int:
    """Return the number of the first layer that takes keys and values of an earlier one; of all layers, if none."""
    return len(kinds(config)) - int(config["num_kv_shared_layers"])


def lacking(config: Mapping[str, Any], layer: int) -> frozenset[str]:
    """Return the modules that one layer has not: what makes keys and values, and what takes inputs of its own."""
    names = set[str]()
    if config.get("attention_k_eq_v") and kinds(config)[layer] == FULL:
        names |= {"self_attn.v_proj"}
    if layer >= first_sharing(config):
        names |= KEYS_VALUES
    if not config["hidden_size_per_layer_input"]:
        names |= {"per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"}
    return frozenset(names)


def unused(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the modules of which a file may have weights that no program uses."""
    layers = range(first_sharing(config), len(kinds(config)))
    return frozenset(f"model.layers.{layer}.{name}" for layer in layers for name in KEYS_VALUES)


def tables(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what makes inputs for each layer, by Hugging Face's names; none where there are none."""
    size, width = int(config["hidden_size_per_layer_input"]), int(config["hidden_size"])
    if not size:
        return {}
    every = len(kinds(config)) * size
    return {
        "model.embed_tokens_per_layer.weight": (int(config["vocab_size"]), every),
        "model.per_layer_model_projection.weight": (every, width),
        "model.per_layer_projection_norm.weight": (size,),
    }


def rotated_in_full(config: Mapping[str, Any]) -> int:
    """Return how many dimensions of a head are rotated in layers that see all tokens; the others stay as they are."""
    return int(config["global_head_dim"] * config["rope_parameters"][FULL].get("partial_rotary_factor", 1.0))


def check_layers(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError for layers that are not supported, and where the programs take them for different ones."""
    if config["global_head_dim"] > MOST_HEAD:
        raise ModelError(path, f"global_head_dim is more than {MOST_HEAD}", got=config["global_head_dim"], fix=FIX)
    if config.get("enable_moe_block"):
        raise ModelError(path, "enable_moe_block: a mixture of experts is not supported", fix="take a dense model")
    for key in MAY_BE_0:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_HEAD:
            raise ModelError(path, f"{key} must be a whole number from 0 to {MOST_HEAD}", got=value, fix=FIX)
    found, layers = config.get("layer_types"), int(config["num_hidden_layers"])
    if not (isinstance(found, list) and len(found) == layers and set(map(str, found)) == {SLIDING, FULL}):
        what = f"layer_types must name {layers} layers, some of them {SLIDING} and some {FULL}"
        raise ModelError(path, what, got=found, fix=FIX)
    if found[-1] != FULL:
        raise ModelError(path, "layer_types: the last layer must see all tokens", got=found[-1], fix=FIX)
    _check_sharing(path, config)
    _check_ropes(path, config)


def _check_sharing(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError where llama.cpp would share keys and values otherwise, or transformers fail."""
    first, shared, size = first_sharing(config), config["num_kv_shared_layers"], config["hidden_size_per_layer_input"]
    if shared and (first < 2 or kinds(config)[first - 2 : first] != [SLIDING, FULL]):
        what = f"num_kv_shared_layers: before the layers that share, a {SLIDING} and a {FULL} must stand"
        raise ModelError(path, what, got=shared, fix=FIX)
    if shared and not (size and isinstance(config.get("use_double_wide_mlp"), bool)):
        what = "num_kv_shared_layers: use_double_wide_mlp and hidden_size_per_layer_input must be named beside it"
        raise ModelError(path, what, got=shared, fix=FIX)
    if size and config.get("vocab_size_per_layer_input") != config["vocab_size"]:
        what = "vocab_size_per_layer_input is not vocab_size"
        raise ModelError(path, what, got=config.get("vocab_size_per_layer_input"), fix=FIX)


def _check_ropes(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError unless every program rotates heads as the released model does."""
    ropes = config["rope_parameters"]
    for kind, released in ROPES.items():
        rope = ropes.get(kind) if isinstance(ropes, dict) else None
        said = rope if isinstance(rope, dict) else {}
        part = said.get("partial_rotary_factor", 1.0)
        dims = config["global_head_dim"] * part if _is_positive(part) and part <= 1 else 0.5
        known = said.get("rope_type") == released["rope_type"] and said.get("factor", 1.0) == 1.0
        if not known or not _is_positive(said.get("rope_theta")) or (part != 1 if kind == SLIDING else dims % 2):
            raise ModelError(path, f"rope_parameters: {kind} is not rotated as in a released model", got=rope, fix=FIX)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**53
