"""The files that llama.cpp serves, in the form that a task asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.export.lossless import Widened, cached_base, link
from pilocal.progress import Progress, silent
from pilocal.task import LOSSLESS


@dataclass(frozen=True, slots=True)
class Files:
    """A base and what is added to it."""

    quant: str
    """"lossless", or llama.cpp's name of the type."""
    base: Path
    """The base alone, in the same type."""
    adapter: Path | None
    """The adapter, which llama.cpp adds to the base; None when `fused` is served."""
    fused: Path | None
    """Both in one file; None when the base is served with `adapter`."""
    floats: Widened = field(default_factory=dict)
    """What a lossless base holds as floats though it was packed."""
    base_is_users: bool = False
    """Whether `base` is the user's own file, which is served where it lies and never changed."""

    @property
    def size(self) -> int:
        """How many bytes are served."""
        return sum(path.stat().st_size for path in (self.fused or self.base, self.adapter) if path)

    @property
    def own(self) -> list[Path]:
        """The files that pilocal wrote."""
        written = (None if self.base_is_users else self.base, self.adapter, self.fused)
        return [path for path in written if path]


def ship(base: Base, adapter: Path, folder: Path, quant: str, *, name: str, progress: Progress = silent) -> Files:
    """Write what is served to `folder`: "lossless" as base-q4_1.gguf and adapter.gguf, any other type fused.

    To a base that is a GGUF file, "lossless" adds adapter.gguf alone. `name` stands in the files' metadata. Raises
    ExportError when the adapter does not fit the base, cannot be an adapter of GGUF's (DoRA), or llama.cpp has no such
    type; RunError when the disk is full.
    """
    lora, fused = ship_adapter(base, adapter, folder, quant, name=name)
    progress(f"export {quant}", 1, 2)
    path, floats = ship_base(base, folder, quant, progress)
    progress(f"export {quant}", 2, 2)
    return Files(quant, path, lora, fused, floats, base_is_users=path == base.gguf)


def ship_base(base: Base, folder: Path, quant: str, progress: Progress = silent) -> tuple[Path, Widened]:
    """Write the base alone, and return its file and what a lossless one holds as floats though it was packed.

    A base that is a GGUF file is its own lossless one.
    """
    if quant != LOSSLESS:
        return export_fused(base, None, folder / f"base-{quant}.gguf", quant), {}
    if base.gguf:
        return base.gguf, {}
    made = cached_base(base, progress)
    return link(made.path, folder), made.floats


def ship_adapter(base: Base, adapter: Path, folder: Path, quant: str, *, name: str) -> tuple[Path | None, Path | None]:
    """Write what an adapter needs beside the base, and return its file or the fused one, and None for the other."""
    if quant == LOSSLESS:
        return export_adapter(base, adapter, folder / "adapter.gguf", name=name), None
    return None, export_fused(base, adapter, folder / f"shipped-{quant}.gguf", quant)
