"""The adapter: LoRA or DoRA on linear layers, saved as mlx-lm saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.base import Base
from pilocal.base.load import unloaded_model
from pilocal.run_folder.adapter import AdapterConfig
from pilocal.run_folder.files import replacing
from pilocal.run_folder.tensors import Float32 as Floats
from pilocal.task import Lora
from pilocal.training.memory import check_lora


def add_lora(model: Any, lora: Lora, seed: int) -> AdapterConfig:
    """Put fresh LoRA or DoRA layers on the last `lora.layers` blocks; return its settings.

    The start is decided by `seed` alone; the weights are float32. Raises InputError when the model has fewer layers, or
    a linear layer that was asked for is not in them.
    """
    layers = lora.layers or len(model.layers)
    known = ARCHITECTURES[model.args.model_type].matrices
    blocks = [[name for name, _ in layer.named_modules() if name in known] for layer in model.layers]
    config = AdapterConfig.of(lora, layers, check_lora(lora, blocks))
    mx.random.seed(seed)
    linear_to_lora_layers(model, layers, config.parameters, use_dora=lora.kind == "dora")
    mx.eval(model.trainable_parameters())
    return config


def initial_adapter(base: Base, lora: Lora, seed: int) -> dict[str, Any]:
    """Return the start that `add_lora` gives a base, as NumPy arrays by name; reads none of the base's weights.

    Raises what `add_lora` raises.
    """
    model = unloaded_model(base)
    model.freeze()
    add_lora(model, lora, seed)
    return {name: np.array(value) for name, value in adapter_weights(model).items()}


def adapter_weights(model: Any) -> dict[str, mx.array]:
    """Return the trainable weights by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_tensors(path: Path, tensors: Mapping[str, Floats], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in MLX's order, whole or not at all; raises RunError on a full disk."""
    arrays = {name: mx.array(value) for name, value in sorted(tensors.items())}
    with replacing(path, "wb") as file:
        mx.save_safetensors(cast(BinaryIO, file), arrays, dict(metadata))
