"""The base in MLX, with or without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.base.blas import load_fast_blas, warn_of_slow_blas
from pilocal.base.device import keeps_packed
from pilocal.base.plain import plain_folder
from pilocal.errors import ModelError
from pilocal.packages import import_mlx_lm, require_packages


def load_base(base: Base, adapter: Path | None = None, precision: str | None = None) -> Any:
    """Return the mlx-lm model, frozen, ready for this machine, with an adapter's LoRA layers if one is given.

    Packed weights stay packed where `keeps_packed` and MLX has that way to pack them; elsewhere they are dequantized to
    float32 (the same numbers, bit for bit). `precision` ("float32" or "bfloat16") is what everything but packed weights
    is turned into and computed in; by default float32 where they are dequantized, what the files hold elsewhere. Raises
    ModelError for a base or an adapter that is damaged, or that do not fit each other.
    """
    require_packages("MLX", "mlx", "mlx_lm")
    load_fast_blas()
    warn_of_slow_blas()
    import_mlx_lm()
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model, load_adapters

    packed = keeps_packed()
    model = _model(base, packed=packed, precision=precision)
    if precision or not packed:
        # Before dequantizing: float32 scales and biases, so that no weight is rounded to their 16 bits.
        model.set_dtype(getattr(mx, precision or "float32"))
    if not packed and base.quantized:
        model = dequantize_model(model)
    if base.architecture.scales_embeddings:
        _scale_exactly(model)
    model.freeze()
    if adapter is not None:
        try:
            model = load_adapters(model, str(adapter))
        except (ValueError, KeyError, OSError) as error:
            what, fix = f"does not fit the base: {str(error).splitlines()[0]}", "train it again, on this base"
            raise ModelError(adapter, what, fix=fix) from None
    model.eval()
    mx.eval(model.parameters())
    return model


def _scale_exactly(model: Any) -> None:
    """Have a model whose embeddings are float32 scale them as transformers and llama.cpp do, in place.

    mlx-lm rounds the factor to bfloat16, as the model was trained: 34 for the root of 1152.
    """
    import mlx.core as mx

    width: float = model.args.hidden_size**0.5
    rounded: Any = mx.array(width, mx.bfloat16).item()
    part = width / rounded
    embedding = model.model.embed_tokens
    kind: Any = type(embedding)

    class Scaled(kind):  # type: ignore[misc]
        def __call__(self, ids: mx.array) -> mx.array:
            hidden: mx.array = super().__call__(ids)
            return hidden * part if hidden.dtype == mx.float32 else hidden

    embedding.__class__ = Scaled


def unloaded_model(base: Base) -> Any:
    """Return the mlx-lm model of which no weight has been read; raises ModelError as `load_base` does."""
    if base.gguf:
        from pilocal.base.gguf_mlx import build_model

        return build_model(base)
    return _from_folder(base, lazy=True)


def _model(base: Base, *, packed: bool, precision: str | None) -> Any:
    if base.gguf:
        from pilocal.base.gguf_mlx import load_gguf

        return load_gguf(base, packed=packed, precision=precision)
    return _from_folder(base)


def _from_folder(base: Base, *, lazy: bool = False) -> Any:
    from mlx_lm.utils import load_model

    try:
        with plain_folder(base.folder) as folder:
            model, _ = load_model(folder, lazy=lazy, model_config=dict(base.config))
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        fix = "copy or download the model again"
        raise ModelError(base.folder, f"cannot be loaded: {str(error).splitlines()[0]}", fix=fix) from None
    return model
