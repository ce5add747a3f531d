"""An adapter from mlx-lm's format to PEFT's and back: the same bits, the same factor on the update."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.export.card import Facts
from pilocal.export.peft import write_peft
from pilocal.parity.replay import Floats
from pilocal.run_folder.adapter import PEFT_FILES, Adapter, AdapterConfig
from pilocal.training.torch_backend.adapter import from_peft

ROUNDING = 1e-12
"""Both alpha = scale * rank and alpha / rank are rounded once."""


def conversion_figures(base: Base, adapter: Mapping[str, Floats], config: AdapterConfig) -> dict[str, Any]:
    """Write an adapter as `pilocal export --format peft` does, read it as PyTorch's backend does, and compare.

    Raises ExportError if the adapter does not fit the base.
    """
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory(prefix="pilocal-parity-") as made:
        mlx, peft = Path(made) / "mlx", Path(made) / "peft"
        Adapter(config=config, tensors=adapter).write(mlx)
        write_peft(base, mlx, peft, Facts(task="parity", base=base.address))
        back = from_peft(load_file(peft / PEFT_FILES[0]))
        settings: dict[str, Any] = json.loads((peft / PEFT_FILES[1]).read_text(encoding="utf-8"))
    names = {*back, *adapter}
    differing = [
        name for name in names if name not in back or name not in adapter or not same(back[name], adapter[name])
    ]
    factor = settings["lora_alpha"] / settings["r"]
    return {
        "tensors": len(adapter),
        "differing": len(differing),
        "first": min(differing, default=None),
        "scale": {"mlx": config.scale, "peft": factor},
        "same_scale": abs(factor - config.scale) <= ROUNDING * abs(config.scale),
    }


def same(one: Floats, other: Floats) -> bool:
    """Return whether two tensors are the same, bit for bit."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
