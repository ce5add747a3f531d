"""Small GGUF files with tensors of any type, and what llama.cpp's own library makes of their bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFWriter

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.gguf_weights import HALVES

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 1,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "tie_word_embeddings": False,
}


def random_bytes(kind: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Random blocks of a type whose numbers are finite, (rows, bytes)."""
    rng = np.random.default_rng(seed)
    rows = int(np.prod(shape[:-1]))
    if kind in ("F32", "F16", "BF16"):
        values = rng.normal(size=(rows, shape[-1])).astype("<f4")
        if kind == "BF16":
            return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
        return (values.astype("<f2") if kind == "F16" else values).view(np.uint8)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, size=(rows * shape[-1] // block, size), dtype=np.uint8)
    for start in HALVES[kind]:
        blocks[:, start : start + 2] = rng.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def add_values(writer: GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Add metadata whose types are Python's."""
    add: dict[type, Any] = {
        bool: writer.add_bool,
        str: writer.add_string,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)


def write_model(
    path: Path,
    kind: str = "Q8_0",
    *,
    architecture: str = "llama",
    metadata: Mapping[str, Any] = MappingProxyType({}),
    without: Sequence[str] = (),
    endian: GGUFEndian = GGUFEndian.LITTLE,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write a model of one layer, its matrices of one type, without a tokenizer; return its tensors' bytes by name.

    `metadata` are keys below the architecture's name; `options` go to GGUFWriter.
    """
    writer = GGUFWriter(path, architecture, endianess=endian, **options)
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    add_values(
        writer,
        {key if key.startswith("general.") else f"{architecture}.{key}": value for key, value in metadata.items()},
    )
    record = ARCHITECTURES.get(architecture, ARCHITECTURES["llama"])
    tensors = {}
    for number, (source, shape) in enumerate(record.shapes(SIZES).items()):
        name = record.tensor(source)
        if name in without:
            continue
        own = kind if len(shape) > 1 else "F32"
        tensors[name] = random_bytes(own, shape, number)
        raw = tensors[name] if len(shape) > 1 else tensors[name][0]
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[own])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def ggml_dequantized(kind: str, data: np.ndarray, count: int) -> np.ndarray:
    """What the library that llama.cpp computes with makes of some bytes, as float32."""
    import llama_cpp

    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
    names = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    short = kind.lower() if kind.startswith("IQ") else kind[0].lower() + kind[1:]
    if kind == "F32":
        return np.ascontiguousarray(data).view("<f4").reshape(-1)
    convert = getattr(library, names.get(kind, f"dequantize_row_{short}"))
    convert.argtypes, convert.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    data, found = np.ascontiguousarray(data), np.empty(count, dtype=np.float32)
    convert(data.ctypes.data, found.ctypes.data, count)
    return found
