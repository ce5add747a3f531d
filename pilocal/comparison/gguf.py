"""The GGUF files that a comparison times: the base's, which is kept, and each adapter's, which is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pilocal.base.base import Base
from pilocal.progress import Progress
from pilocal.task import LOSSLESS


@dataclass(kw_only=True)
class GgufFiles:
    """Makes the files of one base, all of one type."""

    made_from: Base
    quant: str
    """The type of every file."""
    folder: Path
    """Where the base's file is kept."""
    task: str
    """The task's name, which stands in an adapter's metadata."""
    progress: Progress

    @cached_property
    def base(self) -> Path:
        """The base as llama.cpp runs it; raises ExportError if it cannot be written in this type."""
        from pilocal.export.ship import ship_base

        folder = self.folder / self.made_from.sha256[:16]
        known = folder / f"base-{self.quant}.gguf"
        if self.quant != LOSSLESS and known.is_file():
            return known
        return ship_base(self.made_from, folder, self.quant, self.progress)[0]

    @contextmanager
    def of_adapter(self, adapter: Path, folder: Path) -> Iterator[tuple[Path, Path | None]]:
        """Yield the GGUF file that answers with an adapter, and the adapter's own if there is one.

        Both are written to `folder` and deleted afterwards. Raises ExportError if the adapter does not fit the base.
        """
        from pilocal.export.ship import ship_adapter

        lora, fused = ship_adapter(self.made_from, adapter, folder, self.quant, name=self.task)
        try:
            yield fused or self.base, lora
        finally:
            for path in (lora, fused):
                if path:
                    path.unlink()
