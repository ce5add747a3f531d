"""A model as one GGUF file: the base with its adapter fused in, in any of llama.cpp's types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.export.fuse import FusedWeights
from pilocal.export.gguf import ModelFile, Tensor, to_float16, write_gguf
from pilocal.llamacpp.quantize import check_quant, quantize_gguf
from pilocal.run_folder.tensors import Float32

FLOATS = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def export_fused(base: Base, adapter: Path | None, out: Path, quant: str) -> Path:
    """Write `base`, with `adapter` fused in if one is given, to `out` and return it; `quant` is "f16", "q8_0", ...

    Whatever goes wrong, `out` is the old file or the new one. Raises ExportError when the adapter does not fit, or
    llama.cpp has no such type or could not run the result; RunError when the disk is full or cannot be written.
    """
    check_quant(quant)
    if quant in FLOATS:
        write_fused(base, adapter, out, quant, out.stem)
        return out
    floats = out.with_name(f".{out.stem}.f16.gguf")
    try:
        write_fused(base, adapter, floats, "f16", out.stem)
        quantize_gguf(floats, out, quant)
    finally:
        floats.unlink(missing_ok=True)
    return out


def write_fused(base: Base, adapter: Path | None, out: Path, quant: str, name: str) -> None:
    """Write an F16 or BF16 file (norms and the like in F32), one tensor at a time, with `name` in its metadata."""
    weights = FusedWeights(base, adapter)
    model = ModelFile(base, weights)
    kind, file_type = FLOATS[quant]

    def tensor(target: str, source: str) -> Tensor:
        shape = weights.shapes[source]
        in_float32 = base.architecture.in_float32(source, shape)

        def parts() -> list[NDArray[np.generic]]:
            rows = model.changed(target, weights.read(source))
            if in_float32:
                return [rows]
            return [to_float16(rows, base.path, source) if quant == "f16" else to_bfloat16(rows)]

        return Tensor(target, shape, GGMLQuantizationType.F32 if in_float32 else kind, parts)

    tensors = model.extra() + [tensor(target, source) for target, source in model.names.items()]
    write_gguf(out, model.writer(name, file_type), tensors)


def to_bfloat16(tensor: Float32) -> NDArray[np.uint16]:
    """Round to bfloat16's 16 bits, to the nearest and to the even one of two.

    >>> (to_bfloat16(np.array([1.0, 1.00390625, 1.01171875], dtype=np.float32)).astype(np.uint32) << 16).view("<f4")
    array([1.      , 1.      , 1.015625], dtype=float32)
    """
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
