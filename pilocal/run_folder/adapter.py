"""An adapter in mlx-lm's own format: two files, whose names and keys are spelled here alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.errors import InputError
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing, write_json
from pilocal.task import Lora

if TYPE_CHECKING:
    from pilocal.run_folder.tensors import Float32

WEIGHTS_FILE, CONFIG_FILE = FILES = ("adapters.safetensors", "adapter_config.json")
"""The adapter's files."""

PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
"""The files of the same adapter in PEFT's format."""

METADATA = {"format": "mlx"}
"""Of the file of weights."""

POINT = f"point at a folder with {WEIGHTS_FILE} and {CONFIG_FILE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says."""

    kind: str
    """"lora" or "dora"."""
    layers: int
    """How many of the last layers have an adapter; -1 for all."""
    rank: int
    scale: float
    dropout: float = 0.0
    linears: tuple[str, ...] = ()
    """The linear layers of a block that have one; none named: all."""
    model: str | None = None
    """What the task calls the base that it was trained on."""
    base_sha256: str | None = None
    """That base's fingerprint."""

    @classmethod
    def of(cls, lora: Lora, layers: int, linears: Sequence[str]) -> AdapterConfig:
        """Return what a task's `[lora]` comes to on a base."""
        settings: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout}
        return cls(kind=lora.kind, layers=layers, linears=tuple(linears), **settings)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> AdapterConfig:
        """Return what a file says, also mlx-lm's; raises KeyError, TypeError or ValueError for what is none."""
        settings = said["lora_parameters"]
        return cls(
            kind=str(said.get("fine_tune_type", "lora")),
            layers=int(said.get("num_layers", -1)),
            rank=int(settings["rank"]),
            scale=float(settings["scale"]),
            dropout=float(settings.get("dropout", 0.0)),
            linears=tuple(settings.get("keys") or ()),
            model=said.get("model"),
            base_sha256=said.get("base_sha256"),
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """What mlx-lm makes its layers with.

        >>> AdapterConfig(kind="lora", layers=-1, rank=8, scale=2.0).parameters
        {'rank': 8, 'scale': 2.0, 'dropout': 0.0}
        """
        named = {"keys": list(self.linears)} if self.linears else {}
        return {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, **named}

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        made_for = {"model": self.model, "base_sha256": self.base_sha256}
        return {
            "fine_tune_type": self.kind,
            "num_layers": self.layers,
            "lora_parameters": self.parameters,
            **{name: value for name, value in made_for.items() if value is not None},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A whole adapter."""

    config: AdapterConfig
    tensors: Mapping[str, Float32]
    """By mlx-lm's names: MODULE.lora_a (in, rank), MODULE.lora_b (rank, out) and, for DoRA, MODULE.m (out,)."""

    def weighed(self, strength: float) -> Adapter:
        """Return an adapter of which every update is so many times as large; a DoRA cannot be weighed.

        The weights are multiplied, not the scale: llama.cpp takes a scale of 0 for none.
        """
        import numpy as np

        weights = {
            name: value * np.float32(strength) if name.endswith(".lora_b") else value
            for name, value in self.tensors.items()
        }
        return replace(self, tensors=weights)

    def write(
        self, folder: Path, save: Callable[[Path, Mapping[str, Float32], Mapping[str, str]], None] | None = None
    ) -> list[Path]:
        """Write both files, each whole or not at all, and return them; raises RunError on a full disk.

        `save` writes the weights, by default `tensors.save_tensors`. MLX's own writer lays them out in another order,
        and the bytes of a run that was trained in it are to stay.
        """
        from pilocal.run_folder.tensors import save_tensors

        files = [folder / name for name in FILES]
        (save or save_tensors)(files[0], self.tensors, METADATA)
        write_json(files[1], self.config.as_json())
        return files


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder, its weights in float32; raises InputError when it is missing or damaged."""
    from pilocal.run_folder.tensors import read_tensors

    try:
        config = AdapterConfig.from_json(read_json(folder / CONFIG_FILE))
        return Adapter(config=config, tensors=read_tensors(folder / WEIGHTS_FILE))
    except MISSHAPEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(folder, f"not a whole adapter: {reason}", fix=POINT) from None


def read_start(folder: Path, lora: Lora, base_sha256: str) -> dict[str, Float32]:
    """Return the weights of an adapter to start a training from.

    Raises InputError when it cannot be read, or its settings or the base that it was made for (where it names one) are
    not those of the task.
    """
    adapter = read_adapter(folder)
    config = adapter.config
    for name, found, asked in (("rank", config.rank, lora.rank), ("scale", config.scale, lora.scale)):
        if found != asked:
            fix = f"set [lora] {name} to the adapter's, or give another"
            raise InputError(folder, f"the initial adapter's {name} is not the task's {asked}", got=found, fix=fix)
    if config.kind != lora.kind:
        what, fix = f"the initial adapter's kind is not the task's {lora.kind!r}", "give one of this kind"
        raise InputError(folder, what, got=config.kind, fix=fix)
    if config.base_sha256 not in (None, base_sha256):
        what, fix = "the initial adapter was made for another base", "give one that was made for the task's model"
        raise InputError(folder, what, got=config.model, fix=fix)
    return dict(adapter.tensors)


def copy_adapter(source: Path, target: Path) -> list[Path]:
    """Copy an adapter's files from folder to folder, each whole or not at all, and return the new ones."""
    for name in FILES:
        with replacing(target / name, "wb") as file:
            file.write((source / name).read_bytes())
    return [target / name for name in FILES]
