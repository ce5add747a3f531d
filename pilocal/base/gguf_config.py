"""A GGUF file's metadata as the config.json that the same model has as a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.base.architecture import LOCAL_THETA, LONGROPE, YARN, Architecture, score_scale
from pilocal.base.architectures import ARCHITECTURES, architecture_of
from pilocal.base.gguf_file import GgufFile
from pilocal.base.layers import FULL, MOST_HEAD, SLIDING
from pilocal.base.layers import ROPES as LAYER_ROPES
from pilocal.base.rope import llama3_scaling
from pilocal.base.yarn import BETA, ORIGINAL, USUAL
from pilocal.errors import ModelError
from pilocal.run_folder.gguf_header import AGAIN, TensorInfo

NUMBERS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
"""Names in config.json, and GGUF's, of what every file has."""

FRACTIONS = {
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", LOCAL_THETA),
    *("rope.scaling.factor", "rope.scale_linear"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier"),
    "attention.temperature_scale",
    *(key for architecture in ARCHITECTURES.values() for key in architecture.multipliers.values()),
}
"""What need not be a whole number."""

OTHERWISE = (
    "attention.clamp_kqv",
    "attention.scale",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
)
"""Settings under which llama.cpp computes another model than ours, unless they are 0."""

SLIDES = "attention.sliding_window_pattern"
"""Which layers have a window."""

FACTORS = "rope_freqs.weight"
"""The tensor that holds Llama 3's rope scaling, or which part of a head Gemma 4 rotates."""

HARDLY_TURNS = 1e20
"""A frequency that is divided by as much turns by less than a float's precision in any context."""

ANOTHER = "take another base"


def config_of(file: GgufFile) -> dict[str, Any]:
    """Return what config.json says of a file's model; raises ModelError for one that MLX would compute otherwise."""
    kind, architecture = _kind(file)
    if LONGROPE in architecture.scalings:
        what = "llama.cpp picks the rope factors of this kind by the room of its context, not by a text's length"
        raise ModelError(file.path, what, got=file.architecture, fix="take the model as a folder")
    config: dict[str, Any] = {name: _number(file, key) for name, key in NUMBERS.items()}
    config |= _multipliers(file, architecture)
    rows = file.tensors.get("token_embd.weight")
    if rows is None or len(rows.shape) != 2:
        raise ModelError(file.path, "no token_embd.weight: the file is damaged", fix=AGAIN)
    if config["num_hidden_layers"] > len(file.tensors):
        what = f"it holds only {len(file.tensors)} tensors for {config['num_hidden_layers']} blocks"
        raise ModelError(file.path, what, fix=AGAIN)
    config |= {
        "model_type": kind,
        "vocab_size": rows.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }
    return config | (_unlike_layers if architecture.unlike_layers else _like_layers)(file, config)


def _like_layers(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of heads, windows and rope where all layers are alike."""
    heads = config["num_attention_heads"]
    size = _number(file, "attention.key_length", config["hidden_size"] // heads)
    found = {
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_key_value_heads": _number(file, "attention.head_count_kv", heads),
        "head_dim": size,
        "rope_theta": _number(file, "rope.freq_base", 10_000.0),
    }
    architecture = architecture_of(config)
    found |= _windows(file, architecture, {**config, **found})
    _check_sizes(file, {"attention.value_length": size, "rope.dimension_count": size})
    found["rope_scaling"] = _rope_scaling(file, architecture, found["rope_theta"], size)
    return found | _query_scale(file, architecture, {**config, **found})


def _unlike_layers(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same where they are not: each kind of layer has its own heads and its own rope."""
    if (told := _told_scaling(file, architecture_of(config))) is not None:
        raise ModelError(file.path, "rope scaling is not supported in this kind of model", got=told, fix=ANOTHER)
    layers = config["num_hidden_layers"]
    slides = _each(file, SLIDES, layers)
    kinds = [SLIDING if slides_here else FULL for slides_here in slides]
    wide, narrow = (_number(file, f"attention.key_length{end}") for end in ("", "_swa"))
    for end, size in (("", wide), ("_swa", narrow)):
        _check_sizes(file, {f"attention.value_length{end}": size, f"rope.dimension_count{end}": size})
    counts = dict.fromkeys(kinds, 0) | dict(zip(kinds, _each(file, "attention.head_count_kv", layers), strict=True))
    ropes = {kind: dict(rope) for kind, rope in LAYER_ROPES.items()}
    ropes[FULL] |= {"rope_theta": _number(file, "rope.freq_base"), "partial_rotary_factor": _rotated(file, wide)}
    ropes[SLIDING] |= {"rope_theta": _number(file, LOCAL_THETA)}
    shared = _count(file, "attention.shared_kv_layers", layers)
    inner, wider = _inner_widths(file, layers, shared)
    alike = any(kinds[i] == FULL and f"blk.{i}.attn_v.weight" not in file.tensors for i in range(layers - shared))
    return {
        "intermediate_size": inner,
        "use_double_wide_mlp": wider,
        "num_key_value_heads": counts.get(SLIDING),
        "num_global_key_value_heads": counts.get(FULL) if alike else None,
        "head_dim": narrow,
        "global_head_dim": wide,
        "layer_types": kinds,
        "sliding_window": _number(file, "attention.sliding_window"),
        "rope_parameters": ropes,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": _count(file, "embedding_length_per_layer_input", MOST_HEAD),
        "vocab_size_per_layer_input": config["vocab_size"],
        "attention_k_eq_v": alike,
        "enable_moe_block": "blk.0.ffn_gate_inp.weight" in file.tensors,
    }


def _inner_widths(file: GgufFile, layers: int, shared: int) -> tuple[int, bool]:
    """Return the width of an MLP, and whether it is doubled in layers that share keys and values."""
    found = _each(file, "feed_forward_length", layers)
    wider = shared > 0 and found[-1] == 2 * found[0]
    if found != [found[0]] * (layers - shared) + [found[0] * (1 + wider)] * shared or not found[0]:
        what = f"{file.architecture}.feed_forward_length is not supported"
        raise ModelError(file.path, what, got=found, fix=ANOTHER)
    return int(found[0]), wider


def _count(file: GgufFile, key: str, most: int) -> int:
    """Return a whole number that may be 0; raises ModelError for what is none."""
    value = file.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < most:
        raise ModelError(file.path, f"{file.architecture}.{key} must be a whole number", got=value, fix=AGAIN)
    return value


def _each(file: GgufFile, key: str, layers: int) -> list[Any]:
    """Return a number of each layer; raises ModelError where there are not as many as layers."""
    found = file.get(key)
    values = found if isinstance(found, list) else [found] * layers
    if len(values) < layers or not all(isinstance(value, int) and value >= 0 for value in values):
        what = f"{file.architecture}.{key} must have a number for each of {layers} layers"
        raise ModelError(file.path, what, got=found, fix=AGAIN)
    return values[:layers]


def _rotated(file: GgufFile, size: int) -> float:
    """Return which part of a head is rotated; raises ModelError where the factors of its frequencies say none."""
    stored = file.tensors.get(FACTORS)
    factors = _factors(stored) if stored is not None and stored.type_name == "F32" else np.array([])
    turned = int((factors == 1).sum())
    if factors.shape != (size // 2,) or not turned or not (factors[turned:] >= HARDLY_TURNS).all():
        what = f"{FACTORS} does not say which part of a head is rotated"
        raise ModelError(file.path, what, got=factors[:4].tolist(), fix=ANOTHER)
    return turned / (size // 2)


def _factors(stored: TensorInfo) -> NDArray[np.float32]:
    return np.fromfile(stored.path, "<f4", int(np.prod(stored.shape)), offset=stored.begin)


def _check_sizes(file: GgufFile, sizes: Mapping[str, int]) -> None:
    """Raise ModelError where what may be said again is not the dimension of a head."""
    for key, size in sizes.items():
        if file.get(key, size) != size or size % 2:
            what = f"{file.architecture}.{key} is not the dimension of a head, {size}"
            raise ModelError(file.path, what, got=file.get(key), fix=ANOTHER)


def _kind(file: GgufFile) -> tuple[str, Architecture]:
    """Return the `model_type` of a file's model, with its record: a Llama with a window is a Mistral."""
    kinds = [(kind, each) for kind, each in ARCHITECTURES.items() if each.gguf_name == file.architecture]
    windowed = [(kind, each) for kind, each in kinds if each.windows]
    return windowed[0] if windowed and file.get("attention.sliding_window") else kinds[0]


def _windows(file: GgufFile, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of windows; raises ModelError where llama.cpp has them in other layers."""
    windowed = architecture.windows and file.get("attention.sliding_window")
    if architecture.full_every is None and not windowed:
        return {}
    found = {"sliding_window": _number(file, "attention.sliding_window")}
    if (every := architecture.full_every) is None:
        return found
    key, layers = SLIDES, range(1, config["num_hidden_layers"] + 1)
    if file.get(key, every) not in (every, [bool(layer % every) for layer in layers]):
        raise ModelError(file.path, f"{file.architecture}.{key} is not supported", got=file.get(key), fix=ANOTHER)
    local = {"rope_local_base_freq": _number(file, LOCAL_THETA, architecture.local_theta)}
    return found | local | {"query_pre_attn_scalar": score_scale(config)}


def _multipliers(file: GgufFile, architecture: Architecture) -> dict[str, Any]:
    """Return the numbers that scale or count parts of the model; raises ModelError where its kind has none of them."""
    known = architecture.multipliers
    for key in set(OTHERWISE).difference(known.values(), architecture.counts.values()):
        if file.get(key):
            raise ModelError(file.path, f"{file.architecture}.{key} is not supported", got=file.get(key), fix=ANOTHER)
    counts = {name: _number(file, key) for name, key in architecture.counts.items()}
    sparse = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": list[int]()} if counts else {}
    return {name: _number(file, key) for name, key in known.items()} | counts | sparse


def _number(file: GgufFile, key: str, default: float | None = None) -> Any:
    """Return a number above 0; raises ModelError for what is none."""
    value = _one(file, key, default)
    whole = key not in FRACTIONS
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not 0 < value < np.inf:
        what = f"{file.architecture}.{key} must be a {'whole number' if whole else 'number'} above 0"
        raise ModelError(file.path, what, got=value, fix=AGAIN)
    return value if whole else _shortest(value)


def _one(file: GgufFile, key: str, default: Any = None) -> Any:
    """Return a number that may stand there once for every layer; raises ModelError where layers differ."""
    value = file.get(key, default)
    if not isinstance(value, list):
        return value
    if len(set(map(str, value))) != 1:
        what = f"its layers are not alike: {file.architecture}.{key}"
        raise ModelError(file.path, what, got=value, fix=ANOTHER)
    return value[0]


def _shortest(value: float) -> float:
    """Return the shortest decimal number that is the same in float32, as config.json has it.

    >>> _shortest(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(value)))


def _query_scale(file: GgufFile, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of queries that are scaled by their position, with the rope's settings."""
    if not architecture.scales_queries:
        return {}
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    original = _number(file, "rope.scaling.original_context_length", config["max_position_embeddings"])
    said = {ORIGINAL: original, BETA: _number_or_0(file, "attention.temperature_scale")}
    return {"rope_parameters": {**scaling, **said, "rope_theta": config["rope_theta"]}}


def _number_or_0(file: GgufFile, key: str) -> float:
    return float(_number(file, key)) if file.get(key) else 0.0


def _yarn(file: GgufFile, architecture: Architecture, factor: float) -> dict[str, Any]:
    """Return yarn's scaling as config.json has it, with the bounds and magnitudes that llama.cpp takes."""
    original = _number(file, "rope.scaling.original_context_length", file.get("context_length"))
    scaling = {"rope_type": YARN, "factor": factor, ORIGINAL: original}
    if not architecture.reads_yarn:
        return scaling
    return {
        **scaling,
        "beta_fast": _number(file, "rope.scaling.yarn_beta_fast", USUAL["beta_fast"]),
        "beta_slow": _number(file, "rope.scaling.yarn_beta_slow", USUAL["beta_slow"]),
        "mscale": 1.0,
        "mscale_all_dim": _number_or_0(file, "rope.scaling.yarn_log_multiplier"),
    }


def _told_scaling(file: GgufFile, architecture: Architecture) -> dict[str, Any] | None:
    """Return the rope scaling that the metadata tell of; raises ModelError for a kind that is not supported."""
    kind = file.get("rope.scaling.type", "linear")
    said = [key for key in ("rope.scaling.factor", "rope.scale_linear") if file.get(key)]
    factor = _number(file, said[0]) if said else 1.0
    if kind not in ("none", "linear", *({YARN} & architecture.scalings)):
        raise ModelError(file.path, "this kind of rope scaling is not supported", got=kind, fix=ANOTHER)
    key = "rope.scaling.attn_factor"
    if file.get(key, 1.0) != 1.0:
        raise ModelError(file.path, f"{file.architecture}.{key} is not supported", got=file.get(key), fix=ANOTHER)
    if kind == YARN:
        return _yarn(file, architecture, factor)
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else None


def _rope_scaling(file: GgufFile, architecture: Architecture, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the rope scaling as config.json has it; raises ModelError for a kind that is not supported."""
    told = _told_scaling(file, architecture)
    stored = file.tensors.get(FACTORS)
    if stored is None:
        return told
    factors = _factors(stored)
    if np.array_equal(factors, np.ones_like(factors)):
        return told
    scaling = None if told or stored.type_name != "F32" else llama3_scaling(factors, theta, head_dim)
    if scaling is None:
        what = f"{FACTORS} holds other factors than Llama 3's"
        raise ModelError(file.path, what, got=factors[:4].tolist(), fix=ANOTHER)
    return scaling
