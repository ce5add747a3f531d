"""RUN/export/artefacts.json: the forms of the adapter, and what each loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.run_folder.files import MISSHAPEN, read_json, write_json

MOST_NAMES = 4
"""Tensors that a line names; artefacts.json has all of them."""


class Artefacts:
    """RUN/export/artefacts.json: the forms of the adapter, and what each loses."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "artefacts.json"
        try:
            self.entries: dict[str, dict[str, Any]] = _checked(read_json(self.path))
        except MISSHAPEN:
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


def _checked(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return them if they have the shape that `add` gives them; raises one of MISSHAPEN else."""
    for entry in entries.values():
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in entry["files"]):
            raise ValueError("files of another folder")
        _ = entry.get("floats") and floats_line(entry["floats"])
        _ = "kl" in entry and (entry["bytes"] / 1e6, f"{entry['kl']:.2g}", f"{entry['kl_without']:.2g}")
    return entries


def float_notes(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for every form whose base holds packed tensors as floats."""
    return [f"{form}: {floats_line(entry['floats'])}." for form, entry in entries.items() if entry.get("floats")]


def floats_line(floats: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which tensors a lossless base holds as floats though they were packed, and what that costs.

    >>> floats_line({"lm_head.weight": {"type": "F32", "bytes": 4_000_000, "bytes_in_base": 1_000_000}})
    'lm_head.weight in F32, 3.0 MB more than in the base'
    """
    names = list(floats)
    shown = names if len(names) <= MOST_NAMES else [*names[: MOST_NAMES - 1], f"{len(names) - MOST_NAMES + 1} more"]
    types = " and ".join(sorted({each["type"] for each in floats.values()}))
    more = sum(each["bytes"] - each["bytes_in_base"] for each in floats.values())
    return f"{', '.join(shown)} in {types}, {more / 1e6:,.1f} MB more than in the base"
