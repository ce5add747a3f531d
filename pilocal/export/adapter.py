"""A trained adapter, read from mlx-lm's own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilocal.errors import ExportError
from pilocal.export.weights import Float32, read_tensors


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one linear layer: `scale * (lora_a @ lora_b).T`, in float32."""

    lora_a: Float32
    """(in, rank)."""
    lora_b: Float32
    """(rank, out)."""
    magnitude: Float32 | None
    """DoRA's magnitude of each output, (out,); None for LoRA."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it can be added to a weight of (out, in)."""
        (wide, rank), (same, tall) = self.lora_a.shape, self.lora_b.shape
        return (tall, wide) == shape and rank == same and (self.magnitude is None or self.magnitude.shape == (tall,))


@dataclass(frozen=True, slots=True)
class Adapter:
    """A whole adapter."""

    folder: Path
    rank: int
    scale: float
    updates: Mapping[str, Update]
    """By module, such as model.layers.0.self_attn.q_proj."""
    dora: bool


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder; raises ExportError when it is not a whole LoRA or DoRA."""
    fix = "point at a folder that `pilocal train` or mlx-lm wrote"
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, settings = config.get("fine_tune_type", "lora"), config["lora_parameters"]
        scale, rank = float(settings["scale"]), int(settings["rank"])
        tensors = read_tensors(folder / "adapters.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ExportError(folder, f"not a whole adapter: {reason}", fix=fix) from None
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    parts = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}.get(kind, ())
    expected = {f"{module}.{part}" for module in modules for part in parts}
    if not parts or set(tensors) != expected or any(tensors[name].ndim != 2 for name in expected if name[-1] != "m"):
        odd = sorted(expected.symmetric_difference(tensors)) if parts else [kind]
        raise ExportError(folder, "not a plain LoRA or DoRA", got=odd[0] if odd else None, fix="train one of them")
    updates = {
        module: Update(tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"], tensors.get(f"{module}.m"))
        for module in modules
    }
    return Adapter(folder, rank, scale, updates, kind == "dora")
