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
from pilocal.export.adapter import Float32
from pilocal.export.architecture import add_numbers, architecture_of, interleave, rope_factors
from pilocal.export.fuse import FusedWeights
from pilocal.export.quantize import quantize_gguf
from pilocal.export.vocabulary import add_vocabulary
from pilocal.rundir import replacing


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
    architecture = architecture_of(config)
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
        for source in names.values():
            tensor = weights.read(source)
            if heads := architecture.permuted(source, config):
                tensor = interleave(tensor, heads)
            write(tensor if tensor.ndim == 1 else _to_float16(tensor, base, source))


def _plan(base: Path, weights: FusedWeights, name: str) -> tuple[GGUFWriter, dict[str, str], Float32 | None]:
    """Return a writer that knows everything but the numbers, GGUF's names of the tensors, and the rope factors."""
    config = read_config(base)
    architecture = architecture_of(config)
    names = {architecture.tensor(source): source for source in weights.shapes}
    writer = GGUFWriter(None, architecture.gguf_name)
    writer.add_name(name)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_string("pilocal.base.sha256", base_hash(base))
    writer.add_context_length(context_length(base))
    add_numbers(writer, config)
    add_vocabulary(writer, base, weights.shapes["model.embed_tokens.weight"][0])
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for target, source in names.items():
        shape = weights.shapes[source]
        dtype: np.dtype[Any] = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(target, shape, dtype, math.prod(shape) * dtype.itemsize)
    return writer, names, factors


def _to_float16(tensor: Float32, base: Path, name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(tensor).max())
        fix = "look for a training that went astray; F16 ends at 65504"
        raise ExportError(base, f"{name} does not fit F16", got=largest, fix=fix)
    return half
