"""The numbers that llama.cpp builds a model from, and how it rotates positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from pilocal.base.architecture import LOCAL_THETA, LONGROPE, YARN, head_dim, kv_heads
from pilocal.base.architectures import architecture_of, local_theta, rotated
from pilocal.base.base import MOST
from pilocal.base.layers import FULL, SLIDING, kinds, rotated_in_full
from pilocal.base.rope import llama3_factors, longrope_scale
from pilocal.base.yarn import BETA, ORIGINAL, USUAL, misread
from pilocal.errors import ExportError
from pilocal.run_folder.tensors import Float32

COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, None),
    "rope_traditional": (False, None),
}
"""The values of settings, where config.json has them, that MLX, PyTorch and llama.cpp compute alike."""

NOT_ROTATED = 1e30
"""What a frequency is divided by where nothing is rotated, as llama.cpp's own conversion has it."""

SCALING_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What a kind of rope scaling is told by."""


def interleave(rows: Float32, heads: int) -> Float32:
    """Reorder the rows of q_proj or k_proj, (heads * head_dim, ...), to the order that llama.cpp rotates.

    Hugging Face rotates row i of a head with row i + head_dim / 2; llama.cpp rotates neighbours.

    >>> import numpy as np
    >>> interleave(np.arange(8, dtype=np.float32), heads=2).astype(int).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say in which file the setting is of which the block complains."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{path} {error.where}", error.problem, got=error.got, fix=error.fix) from None


def check_settings(config: Mapping[str, Any]) -> None:
    """Raise ExportError for a setting of config.json under which llama.cpp would compute another model."""
    what = "llama.cpp computes this model in another way"
    if key := architecture_of(config).computed_otherwise(config):
        raise ExportError(key, what, got=config.get(key), fix="take a base that is as its kind was released")
    if key := misread(config):
        said = config.get("rope_scaling")
        got = said.get(key) if isinstance(said, dict) else said
        raise ExportError(key, what, got=got, fix="take a base that is as its kind was released")
    ropes = [config[key] for key in ("rope_scaling", "rope_parameters") if isinstance(config.get(key), dict)]
    own = {"partial_rotary_factor"} if architecture_of(config).partial_rotary else set()
    for key, values in COMPUTED.items():
        for place in (config, *ropes):
            if key in place and key not in own and place[key] not in values:
                fix = f"take a base with {values[0]!r}"
                raise ExportError(key, what, got=place[key], fix=fix)


def rope_factors(config: Mapping[str, Any]) -> Float32 | None:
    """Return what each rotation frequency is divided by, (head_dim / 2,), or None where all are treated alike.

    Raises ExportError for a scaling that llama.cpp does not compute.
    """
    if architecture_of(config).unlike_layers:
        turned, half = rotated_in_full(config) // 2, int(config["global_head_dim"]) // 2
        return np.array([1.0] * turned + [NOT_ROTATED] * (half - turned), np.float32)
    scaling, kind = config.get("rope_scaling") or {}, _scaling(config)
    if kind not in architecture_of(config).scalings:
        fix = "take a base without it"
        raise ExportError("rope_scaling", "this kind cannot be exported", got=kind, fix=fix)
    for name in SCALING_NUMBERS.get(kind, ()):
        if not (isinstance(scaling.get(name), int | float) and 0 < scaling[name] < MOST):
            what, fix = f"{kind} needs a {name} above 0", "copy or download the model again"
            raise ExportError("rope_scaling", what, got=scaling.get(name), fix=fix)
    if kind == LONGROPE:
        return _short_factors(config)
    if kind != "llama3":
        return None
    if not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        what, fix = "llama3 needs a high_freq_factor above its low_freq_factor", "copy or download the model again"
        raise ExportError("rope_scaling", what, got=scaling["high_freq_factor"], fix=fix)
    return llama3_factors(_rope_theta(config), head_dim(config), scaling)


def _short_factors(config: Mapping[str, Any]) -> Float32:
    """Return Phi's factors for short contexts; raises ExportError where they do not fit its heads."""
    factors, original = config["rope_scaling"].get("short_factor"), config.get("original_max_position_embeddings")
    numbers = [each for each in factors if isinstance(each, int | float)] if isinstance(factors, list) else []
    fit = len(numbers) == rotated(config) // 2 and all(0 < each < MOST for each in numbers)
    if not (fit and isinstance(original, int) and original > 1):
        what, fix = f"longrope needs {rotated(config) // 2} numbers as short_factor", "copy or download the model again"
        raise ExportError("rope_scaling", what, got=len(numbers), fix=fix)
    return np.array(numbers, np.float32)


def add_numbers(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add the numbers that llama.cpp builds the model from."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    architecture = architecture_of(config)
    (_add_unlike_heads if architecture.unlike_layers else _add_heads)(writer, config)
    for name, key in architecture.counts.items():
        writer.add_uint32(f"{architecture.gguf_name}.{key}", int(config[name]))
    for name, key in architecture.multipliers.items():
        writer.add_float32(f"{architecture.gguf_name}.{key}", float(config[name]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_unlike_heads(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add the numbers of attention of a model whose layers are not alike."""
    layers, ropes = kinds(config), config["rope_parameters"]
    each = architecture_of(config).settings_of_layers(config)
    inner = [int(own["intermediate_size"]) for own in each]
    writer.add_feed_forward_length(inner if len(set(inner)) > 1 else inner[0])
    writer.add_head_count_kv([kv_heads(own) for own in each])
    wide, narrow = int(config["global_head_dim"]), int(config["head_dim"])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(wide)
    for add in (writer.add_key_length_swa, writer.add_value_length_swa, writer.add_rope_dimension_count_swa):
        add(narrow)
    writer.add_rope_freq_base(float(ropes[FULL]["rope_theta"]))
    writer.add_float32(f"{writer.arch}.{LOCAL_THETA}", float(ropes[SLIDING]["rope_theta"]))
    writer.add_sliding_window(int(config["sliding_window"]))
    writer.add_sliding_window_pattern([kind == SLIDING for kind in layers])
    writer.add_shared_kv_layers(int(config["num_kv_shared_layers"]))
    writer.add_embedding_length_per_layer_input(int(config["hidden_size_per_layer_input"]))


def _add_heads(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add the numbers of attention of a model whose layers are all alike."""
    size = head_dim(config)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(kv_heads(config))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(rotated(config))
    writer.add_rope_freq_base(_rope_theta(config))
    if _scaling(config) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config["rope_scaling"]["factor"]))
    if _scaling(config) == LONGROPE:
        writer.add_rope_scaling_orig_ctx_len(int(config["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(longrope_scale(config))
    architecture = architecture_of(config)
    _add_yarn(writer, config)
    if architecture.full_every is not None:
        writer.add_sliding_window(int(config["sliding_window"]))
        writer.add_float32(f"{architecture.gguf_name}.{LOCAL_THETA}", local_theta(config))


def _add_yarn(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """Add the numbers of yarn's scaling, and those by which queries are scaled, where there are any."""
    is_yarn, architecture = _scaling(config) == YARN, architecture_of(config)
    if not (is_yarn or architecture.scales_queries):
        return
    said = {**USUAL, **config["rope_scaling"]}
    writer.add_rope_scaling_orig_ctx_len(said[ORIGINAL])
    if is_yarn:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(said["factor"]))
    if is_yarn and architecture.reads_yarn:
        writer.add_rope_scaling_yarn_beta_fast(float(said["beta_fast"]))
        writer.add_rope_scaling_yarn_beta_slow(float(said["beta_slow"]))
        writer.add_rope_scaling_yarn_log_mul(float(said["mscale_all_dim"]))
    if architecture.scales_queries:
        writer.add_attn_temperature_scale(float(said[BETA]))


def _scaling(config: Mapping[str, Any]) -> str:
    """Return the kind of rope scaling; several names in one, which no architecture has, where config.json says several.

    >>> _scaling({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}, "rope_scaling": None})
    'yarn'
    >>> _scaling({"rope_scaling": {"type": "linear", "rope_type": "yarn"}})
    'linear, yarn'
    """
    kinds = set[str]()
    for said in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(said, dict):
            kinds |= {str(said[key]) for key in ("type", "rope_type") if said.get(key)}
            if any(isinstance(value, dict) for value in said.values()):
                kinds.add("one for each kind of layer")
        elif said:
            kinds.add(repr(said))
    return ", ".join(sorted(kinds - {"default"})) or "default"


def _rope_theta(config: Mapping[str, Any]) -> float:
    return float(config.get("rope_theta") or architecture_of(config).rope_theta)
