"""The base's weights in float32 with an adapter added, read one tensor at a time.

Fusing goes through float32: rounding base + adapter back to 4 bits would lose most of the adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pilocal.base import read_config
from pilocal.blas import load_fast_blas
from pilocal.errors import ExportError
from pilocal.export.adapter import Adapter, Float32, read_adapter

RETRAIN = "export with the base that the adapter was trained on"


class FusedWeights:
    """A base's tensors with an adapter added, under their Hugging Face names; memory holds one tensor at a time.

    MLX's affine quantization is undone as `w = scale * q + bias` in float32; float tensors stay as they are. Raises
    ExportError when the adapter does not fit the base, or the base is quantized in another way.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """The shape of every tensor, as dequantized: (out, in) for a linear layer."""
    adapter: Adapter | None
    """What is added."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        load_fast_blas()
        self._base = base
        config = read_config(base)
        self._quantization: Mapping[str, Any] = config.get("quantization") or {}
        self._stored: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for path in sorted(base.glob("model*.safetensors")):
            self._stored |= {name: (path, shape) for name, shape in _stored_shapes(path).items()}
        quantized = {name.removesuffix(".scales") for name in self._stored if name.endswith(".scales")}
        parts = {f"{module}.{part}" for module in quantized for part in ("scales", "biases")}
        tied = {"lm_head.weight"} if config.get("tie_word_embeddings", True) else set()
        names = [name for name in self._stored if name not in parts | tied and not name.endswith("rotary_emb.inv_freq")]
        self.shapes = {name: self._shape(name) for name in names}
        self.adapter = read_adapter(adapter) if adapter else None
        if self.adapter:
            self._check(self.adapter)

    def read(self, name: str) -> Float32:
        """Return one tensor, adapter included."""
        import mlx.core as mx

        module = name.removesuffix(".weight")
        tensor = self._load(name)
        if self._is_quantized(module):
            scales, biases = (self._load(f"{module}.{part}").astype(mx.float32) for part in ("scales", "biases"))
            group_size, bits = self._packing(module)
            tensor = mx.dequantize(tensor, scales, biases, group_size=group_size, bits=bits)
        elif not mx.issubdtype(tensor.dtype, mx.floating):
            fix = "take a float base, or one that mlx-lm quantized"
            raise ExportError(self._base, f"{name} is packed in an unknown way", got=str(tensor.dtype), fix=fix)
        weight: Float32 = np.array(tensor.astype(mx.float32))
        update = self.adapter.updates.get(module) if self.adapter and name.endswith(".weight") else None
        if self.adapter and update:
            weight += (np.float32(self.adapter.scale) * update.lora_b).T @ update.lora_a.T
            if update.magnitude is not None:
                weight *= (update.magnitude / np.linalg.norm(weight, axis=1))[:, None]
        return weight

    def _shape(self, name: str) -> tuple[int, ...]:
        module = name.removesuffix(".weight")
        if not self._is_quantized(module):
            return self._stored[name][1]
        rows, groups = self._stored[f"{module}.scales"][1]
        return rows, groups * self._packing(module)[0]

    def _is_quantized(self, module: str) -> bool:
        return f"{module}.scales" in self._stored

    def _packing(self, module: str) -> tuple[int, int]:
        """Return (group size, bits) of a quantized module; config.json may name exceptions to its general rule."""
        settings = {**self._quantization, **(self._quantization.get(module) or {})}
        if settings.get("mode", "affine") != "affine" or "group_size" not in settings:
            fix = "take a float base, or one that mlx-lm quantized with mode affine"
            raise ExportError(self._base, f"{module} is not in affine quantization", got=settings.get("mode"), fix=fix)
        return int(settings["group_size"]), int(settings["bits"])

    def _load(self, name: str) -> Any:
        """Return one stored tensor as an mlx array; MLX reads a file's tensors when they are used, so only this one."""
        import mlx.core as mx

        tensors: Any = mx.load(str(self._stored[name][0]))
        return tensors[name]

    def _check(self, adapter: Adapter) -> None:
        misfits = []
        for module, update in adapter.updates.items():
            shape = self.shapes.get(f"{module}.weight")
            if shape is None:
                misfits.append(f"{module}, which the base lacks")
            elif not update.fits(shape):
                made = f"{update.lora_a.shape} x {update.lora_b.shape}"
                misfits.append(f"{module}, made as {made} for a weight of {shape}")
        if misfits:
            more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
            raise ExportError(adapter.folder, f"the adapter does not fit: it changes {misfits[0]}{more}", fix=RETRAIN)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors header (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
