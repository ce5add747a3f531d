"""Runs to serve: what a run ships, written from a base and an adapter without training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.run_folder.shipped import Shipped
from pilocal.task import Example

TEMPLATE = "Answer with the code of the colour.\n- red is ZOR\n- blue is MIP\n- green is KEL\nSay nothing else."
EXAMPLES = tuple(
    Example(id=f"{ask}-{colour}", query=ask.format(colour), answer=code)
    for ask in ("what is {}?", "and {}?", "{}")
    for colour, code in (("red", "ZOR"), ("blue", "MIP"), ("green", "KEL"))
)


def make_run(
    run: Path,
    base: Base,
    adapter: Path,
    *,
    gguf: Path | None = None,
    fused: bool = False,
    examples: Sequence[Example] = EXAMPLES,
    **changes: Any,
) -> Shipped:
    """Write RUN/export with an adapter, or fused; `gguf` is the base's file where it is there already."""
    folder = run / "export"
    folder.mkdir(parents=True)
    if gguf is None:
        export_fused(base, None, folder / "base-f16.gguf", "f16")
    else:
        shutil.copyfile(gguf, folder / "base-f16.gguf")
    if fused:
        export_fused(base, adapter, folder / "fused-f16.gguf", "f16")
    else:
        export_adapter(base, adapter, folder / "adapter.gguf", name=run.name)
    values: dict[str, Any] = {
        "folder": folder,
        "name": run.name,
        "base": "base-f16.gguf",
        "adapter": None if fused else "adapter.gguf",
        "fused": "fused-f16.gguf" if fused else None,
        "base_sha256": base.sha256,
        "template": TEMPLATE,
        "shots": 2,
    }
    shipped = Shipped(**values | changes)
    shipped.save(examples)
    return shipped
