"""An adapter as a GGUF file of its own, which llama.cpp adds to a base that is in memory already.

Source: llama.cpp's convert_lora_to_gguf.py and llama-adapter.cpp, for the keys and the names of the tensors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from pilocal.base.base import Base
from pilocal.errors import ExportError
from pilocal.export.adapter import read_updates
from pilocal.export.fuse import check_fit
from pilocal.export.gguf import BASE_HASH, ModelFile, to_float16, whole, write_gguf
from pilocal.export.weights import BaseWeights

NO_DORA = "GGUF's adapters have no magnitudes"
FUSE = 'set [export] quant = "q8_0", which fuses it, or [lora] kind = "lora"'


def export_adapter(base: Base, adapter: Path, out: Path, *, name: str) -> Path:
    """Write an adapter to `out` and return it; a file of F16, `name` in its metadata, the base's fingerprint beside it.

    Raises ExportError for an adapter that does not fit the base, or a DoRA; RunError when the disk is full.
    """
    trained, weights = read_updates(adapter), BaseWeights(base)
    check_fit(trained, weights)
    if trained.dora:
        raise ExportError(adapter, NO_DORA, got="dora", fix=FUSE)
    model = ModelFile(base, weights)
    targets = {source: target for target, source in model.names.items()}
    writer = GGUFWriter(None, model.architecture.gguf_name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", trained.scale * trained.rank)
    writer.add_name(name)
    writer.add_string(BASE_HASH, base.sha256)
    tensors = []
    for module, update in trained.by_module.items():
        target = targets[f"{module}.weight"]
        a, b = np.ascontiguousarray(update.lora_a.T), model.changed(target, np.ascontiguousarray(update.lora_b.T))
        tensors += [
            whole(f"{target}.lora_a", to_float16(a, adapter, module)),
            whole(f"{target}.lora_b", to_float16(b, adapter, module)),
        ]
    write_gguf(out, writer, tensors)
    return out
