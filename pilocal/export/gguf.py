"""A Llama as one GGUF file: the base with its adapter fused in, in F16 or in one of llama.cpp's quantized types.

Source: the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from pilocal.base import base_hash, context_length, read_config
from pilocal.errors import ExportError
from pilocal.export.fuse import Float32, FusedWeights
from pilocal.export.quantize import quantize_gguf
from pilocal.export.vocabulary import add_vocabulary
from pilocal.rundir import replacing

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


def export_gguf(base: Path, adapter: Path | None, out: Path, quant: str) -> Path:
    """Write `base`, with `adapter` fused in if one is given, to `out` and return it; `quant` is "f16", "q8_0", ...

    Whatever goes wrong, `out` is the old file or the new one. Raises ExportError when the adapter does not fit, or
    llama.cpp could not run the result; RunError when the disk is full or cannot be written.
    """
    if quant == "f16":
        write_gguf(base, adapter, out)
        return out
    whole = out.with_name(f".{out.stem}.f16.gguf")
    try:
        write_gguf(base, adapter, whole, name=out.stem)
        quantize_gguf(whole, out, quant)
    finally:
        whole.unlink(missing_ok=True)
    return out


def check_exportable(base: Path) -> None:
    """Raise ExportError now for what `export_gguf` would refuse after the training; writes nothing."""
    _plan(base, FusedWeights(base, None), "check")


def write_gguf(base: Path, adapter: Path | None, out: Path, *, name: str | None = None) -> None:
    """Write an F16 GGUF (vectors, such as norms, in F32), one tensor at a time; `name` defaults to the file's stem."""
    config = read_config(base)
    weights = FusedWeights(base, adapter)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": _kv_heads(config)}
    writer, names, factors = _plan(base, weights, name or out.stem)
    with replacing(out, "wb") as file:
        writer.fout, writer.state = [file], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())

        def write(tensor: NDArray[Any]) -> None:
            # Not tofile(), whose OSError does not say that the disk is full.
            file.write(np.ascontiguousarray(tensor).data)
            writer.write_padding(file, tensor.nbytes)

        if factors is not None:
            write(factors)
        for target, source in names.items():
            tensor = weights.read(source)
            part = target.split(".")[-2]
            if part in heads:
                tensor = interleave(tensor, heads[part])
            write(tensor if tensor.ndim == 1 else _to_float16(tensor, base, source))


def _plan(base: Path, weights: FusedWeights, name: str) -> tuple[GGUFWriter, dict[str, str], Float32 | None]:
    """Return a writer that knows everything but the numbers, GGUF's names of the tensors, and the rope factors."""
    config = read_config(base)
    names = {gguf_name(module): module for module in weights.shapes}
    writer = GGUFWriter(None, "llama")
    writer.add_name(name)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_string("pilocal.base.sha256", base_hash(base))
    writer.add_context_length(context_length(base))
    _add_shape(writer, config)
    add_vocabulary(writer, base, weights.shapes["model.embed_tokens.weight"][0])
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for target, source in names.items():
        shape = weights.shapes[source]
        dtype: np.dtype[Any] = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(target, shape, dtype, math.prod(shape) * dtype.itemsize)
    return writer, names, factors


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


def _add_shape(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Add the numbers that llama.cpp builds the model from."""
    head_dim = _head_dim(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_kv_heads(config))
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


def _kv_heads(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def _to_float16(tensor: Float32, base: Path, name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(tensor).max())
        fix = "look for a training that went astray; F16 ends at 65504"
        raise ExportError(base, f"{name} does not fit F16", got=largest, fix=fix)
    return half
