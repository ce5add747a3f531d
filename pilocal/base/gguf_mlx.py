"""A GGUF file as mlx-lm's model."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.quantized import quantize
from mlx_lm.utils import MODEL_REMAPPING

from pilocal.base.base import Base
from pilocal.base.gguf_weights import GROUP

FLOATS = {"F16": mx.float16, "BF16": mx.bfloat16}
"""The types of MLX that hold a file's floats in as many bits."""


def build_model(base: Base) -> Any:
    """Return mlx-lm's model as config.json says it, with numbers that nobody has drawn yet."""
    kind = str(base.config["model_type"])
    module = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    return module.Model(module.ModelArgs.from_dict(dict(base.config)))


def load_gguf(base: Base, *, packed: bool, precision: str | None) -> Any:
    """Return the model with the file's numbers: floats in `precision`, by default in float32.

    With `packed` what MLX holds exactly stays packed, and floats keep the bits that they have.
    """
    model, weights = build_model(base), base.gguf_weights
    dtype = getattr(mx, precision or "float32")
    bits = {name.removesuffix(".weight"): weights.packed_bits(name) for name in weights.shapes} if packed else {}

    def settings(path: str, _: Module) -> bool | dict[str, Any]:
        return {"group_size": GROUP, "bits": bits[path]} if bits.get(path) else False

    def tensors() -> Iterator[tuple[str, mx.array]]:
        for name in weights.shapes:
            module = name.removesuffix(".weight")
            if bits.get(module):
                parts = weights.packed(name)
                yield name, mx.array(parts.words)
                yield f"{module}.scales", mx.array(parts.scales)
                yield f"{module}.biases", mx.array(parts.biases)
            else:
                own = FLOATS.get(weights.type(name), dtype) if packed and not precision else dtype
                made = mx.array(weights.read(name)).astype(own)
                mx.eval(made)  # so that the float32 it was made of is freed
                yield name, made

    if any(bits.values()):
        quantize(model, group_size=GROUP, class_predicate=settings)
    found = model.sanitize(dict(tensors())) if hasattr(model, "sanitize") else dict(tensors())
    model.load_weights(list(found.items()), strict=True)
    return model
