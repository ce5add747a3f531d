"""The base's weights in float32 with an adapter added, read one tensor at a time.

Fusing goes through float32: rounding base + adapter back to 4 bits would lose most of the adapter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pilocal.base.base import Base
from pilocal.base.blas import load_fast_blas
from pilocal.errors import ExportError
from pilocal.export.adapter import Updates, read_updates
from pilocal.export.weights import BaseWeights
from pilocal.run_folder.tensors import Float32

RETRAIN = "export with the base that the adapter was trained on"


class FusedWeights(BaseWeights):
    """A base's tensors with an adapter added; raises ExportError when the adapter does not fit the base."""

    adapter: Updates | None
    """What is added."""

    def __init__(self, base: Base, adapter: Path | None) -> None:
        super().__init__(base)
        self.adapter = read_updates(adapter) if adapter else None
        if self.adapter:
            load_fast_blas()
            check_fit(self.adapter, self)

    def read(self, name: str) -> Float32:
        """Return one tensor, adapter included."""
        weight = super().read(name)
        module = name.removesuffix(".weight")
        update = self.adapter.by_module.get(module) if self.adapter and name.endswith(".weight") else None
        if self.adapter and update:
            weight += (np.float32(self.adapter.scale) * update.lora_b).T @ update.lora_a.T
            if update.magnitude is not None:
                weight *= (update.magnitude / np.linalg.norm(weight, axis=1))[:, None]
        return weight


def check_fit(adapter: Updates, base: BaseWeights) -> None:
    """Raise ExportError unless every layer that the adapter changes is there and of its shape."""
    misfits = []
    for module, update in adapter.by_module.items():
        shape = base.shapes.get(f"{module}.weight")
        if shape is None:
            misfits.append(f"{module}, which the base lacks")
        elif not update.fits(shape):
            made = f"{update.lora_a.shape} x {update.lora_b.shape}"
            misfits.append(f"{module}, made as {made} for a weight of {shape}")
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise ExportError(adapter.folder, f"the adapter does not fit: it changes {misfits[0]}{more}", fix=RETRAIN)
