"""The adapter: LoRA or DoRA on linear layers, saved as mlx-lm saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from pilocal.base.base import Base
from pilocal.run_folder.files import replacing, write_json
from pilocal.task import Lora
from pilocal.training.memory import check_lora


def add_lora(model: Any, lora: Lora, seed: int) -> dict[str, Any]:
    """Put fresh LoRA or DoRA layers on the last `lora.layers` blocks; return adapter_config's content.

    The start is decided by `seed` alone; the weights are float32. Raises InputError when the model has fewer layers, or
    a linear layer that was asked for is not in them.
    """
    layers = lora.layers or len(model.layers)
    known = sorted(
        name for name, module in model.layers[0].named_modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)
    )
    check_lora(lora, len(model.layers), known)
    keys = sorted(lora.linears) or known
    parameters = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": keys}
    mx.random.seed(seed)
    linear_to_lora_layers(model, layers, parameters, use_dora=lora.kind == "dora")
    mx.eval(model.trainable_parameters())
    return {"fine_tune_type": lora.kind, "num_layers": layers, "lora_parameters": parameters}


def initial_adapter(base: Base, lora: Lora, seed: int) -> dict[str, Any]:
    """Return the start that `add_lora` gives a base, as NumPy arrays by name; reads none of the base's weights.

    Raises what `add_lora` raises.
    """
    model, _ = load_model(base.folder, lazy=True, model_config=dict(base.config))
    model.freeze()
    add_lora(model, lora, seed)
    return {name: np.array(value) for name, value in adapter_weights(model).items()}


def adapter_weights(model: Any) -> dict[str, mx.array]:
    """Return the trainable weights by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_adapter(folder: Path, weights: dict[str, mx.array], config: dict[str, Any]) -> list[Path]:
    """Write adapters.safetensors and adapter_config.json, each whole or not at all; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "adapters.safetensors", folder / "adapter_config.json"]
    save_arrays(files[0], weights, {"format": "mlx"})
    write_json(files[1], config)
    return files


def save_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write a safetensors file that is either whole or not there; raises RunError on a full disk."""
    with replacing(path, "wb") as file:
        mx.save_safetensors(cast(BinaryIO, file), dict(sorted(arrays.items())), metadata)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config
