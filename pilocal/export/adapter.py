"""What a trained adapter adds to each layer of its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilocal.errors import ExportError
from pilocal.run_folder.adapter import read_adapter
from pilocal.run_folder.tensors import Float32


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
class Updates:
    """What an adapter adds to a base."""

    folder: Path
    """The adapter's."""
    rank: int
    scale: float
    by_module: Mapping[str, Update]
    """By module, such as model.layers.0.self_attn.q_proj."""
    dora: bool


PARTS: Mapping[str, tuple[str, ...]] = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
"""The tensors of a module, by the adapter's kind."""


def read_updates(folder: Path) -> Updates:
    """Return what the adapter in a folder adds.

    Raises InputError when it is missing or damaged, ExportError when it is not a plain LoRA or DoRA.
    """
    adapter = read_adapter(folder)
    config, tensors, parts = adapter.config, adapter.tensors, PARTS.get(adapter.config.kind, ())
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    expected = {f"{module}.{part}" for module in modules for part in parts}
    if not parts or set(tensors) != expected or any(tensors[name].ndim != 2 for name in expected if name[-1] != "m"):
        odd = sorted(expected.symmetric_difference(tensors)) if parts else [config.kind]
        raise ExportError(folder, "not a plain LoRA or DoRA", got=odd[0] if odd else None, fix="train one of them")
    updates = {
        module: Update(tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"], tensors.get(f"{module}.m"))
        for module in modules
    }
    return Updates(folder, config.rank, config.scale, updates, config.kind == "dora")
