"""RUN/export/artefacts.json: the forms of the adapter, and what each loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilocal.run.files import write_json


class Artefacts:
    """RUN/export/artefacts.json: the forms of the adapter, and what each loses."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "artefacts.json"
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.entries = {}

    def add(self, name: str, files: Sequence[Path], **facts: Any) -> None:
        """Record an artefact and its files, which are in the same folder."""
        folder = self.path.parent
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
        self.entries[name] = {"files": sizes, **facts}
        write_json(self.path, self.entries)

    def clear(self) -> None:
        """Delete all of them; they were made from another adapter."""
        for entry in self.entries.values():
            for name in entry["files"]:
                (self.path.parent / name).unlink(missing_ok=True)
        self.entries = {}
        self.path.unlink(missing_ok=True)

    @property
    def gated(self) -> dict[str, dict[str, Any]]:
        """The entries that went through the gate."""
        return {name: entry for name, entry in self.entries.items() if "kl" in entry}
