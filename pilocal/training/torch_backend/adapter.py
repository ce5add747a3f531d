"""The adapter under mlx-lm's names and under PEFT's: the same numbers, turned.

mlx-lm keeps `MODULE.lora_a` (in, r) and `MODULE.lora_b` (r, out), PEFT `base_model.model.MODULE.lora_A.weight` (r, in)
and `.lora_B.weight` (out, r); alpha = scale * rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.run_folder.adapter import PEFT_FILES
from pilocal.run_folder.files import write_json
from pilocal.run_folder.tensors import save_tensors

Floats = NDArray[np.float32]

ADAPTER_NAME = "default"
"""What peft calls the one adapter of a model."""

PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the model's LoRA parameters, in peft's layout, by mlx-lm's names, sorted."""
    found = {}
    for name, parameter in model.named_parameters():
        for ours, pefts in PARTS.items():
            mark = f".{pefts}.{ADAPTER_NAME}.weight"
            if name.endswith(mark):
                found[f"{name.removesuffix(mark)}.{ours}"] = parameter
    return dict(sorted(found.items()))


def to_peft(adapter: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return an adapter under PEFT's names and layouts.

    >>> {name: value.shape for name, value in to_peft({"m.lora_a": np.zeros((5, 2), dtype=np.float32)}).items()}
    {'base_model.model.m.lora_A.weight': (2, 5)}
    """
    turned = {}
    for name, value in adapter.items():
        module, _, part = name.rpartition(".")
        turned[f"base_model.model.{module}.{PARTS[part]}.weight"] = np.ascontiguousarray(value.T)
    return turned


def from_peft(tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return an adapter under mlx-lm's names and layouts; the inverse of `to_peft`."""
    turned = {}
    for name, value in tensors.items():
        module, part, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        turned[f"{module}.{part.lower()}"] = np.ascontiguousarray(value.T)
    return dict(sorted(turned.items()))


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Floats]:
    """Return a start as LoRA has it: A is uniform within 1 / sqrt(in) of 0, B is 0; `shapes` are mlx-lm's.

    The distribution is MLX's, the numbers are not: its generator is its own.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        bound = 1 / math.sqrt(shape[0])
        values = rng.uniform(-bound, bound, shape) if name.endswith("lora_a") else np.zeros(shape)
        drawn[name] = values.astype(np.float32)
    return drawn


def check_adapter(adapter: Mapping[str, Floats], shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
    """Raise InputError unless an adapter has exactly the tensors of `shapes`, all of them numbers."""
    fix = "give one that was made for this base and this task's [lora]"
    if names := sorted(set(shapes) ^ set(adapter)):
        what = f"the initial adapter {'lacks' if names[0] in shapes else 'has, and the task does not,'} {names[0]}"
        raise InputError(where, what, got=f"{len(adapter)} tensors, not {len(shapes)}", fix=fix)
    for name, shape in shapes.items():
        if adapter[name].shape != shape:
            what = f"{name} of the initial adapter should be {shape[0]} x {shape[1]}"
            raise InputError(where, what, got=" x ".join(map(str, adapter[name].shape)), fix=fix)
        if not np.isfinite(adapter[name]).all():
            raise InputError(where, f"{name} of the initial adapter holds what is no number", fix=fix)


def save_peft(folder: Path, adapter: Mapping[str, Floats], settings: Any, base: str) -> list[Path]:
    """Write the adapter's two files as PEFT does; return both.

    `settings` is the LoraConfig that was trained with, `base` what the task calls its model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in PEFT_FILES]
    save_tensors(files[0], to_peft(adapter), {"format": "pt"})
    said = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    write_json(files[1], said | {"base_model_name_or_path": base, "inference_mode": True})
    return files
