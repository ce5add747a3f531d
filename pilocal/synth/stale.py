"""Solved examples whose answers are of a template that was edited since: they are not learned from, but asked anew.

A synthesis remembers what the entries that an example names said when it met the example first. An example whose answer
is corrected is another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pilocal.compress.entries import Index, read_entries, read_names
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.task import Example


class Memory:
    """What the entries said when each example was met first, kept in a file."""

    def __init__(self, path: Path, template: str, queries: Sequence[str]) -> None:
        """Read what is there; `queries` tell what the entries of the template are called."""
        self._path = path
        self._texts = {entry.number: entry.text for entry in read_entries(template)}
        self._index = Index(read_names(read_entries(template), queries))
        self._seen: dict[str, list[str]] = {}
        self._known = self._read()

    def _read(self) -> dict[str, list[str]]:
        try:
            kept = read_json(self._path)
            return {str(key): [str(text) for text in texts] for key, texts in kept.items()}
        except MISSHAPEN:
            return {}

    def is_stale(self, example: Example) -> bool:
        """Tell whether an entry that the example named at first says something else now, or is gone."""
        key = fingerprint(example.history, example.query, example.answer)
        named = [self._texts[number] for number in sorted(set(self._index.entries_of(*example.learned_queries)))]
        self._seen[key] = self._known.get(key, named)
        return not set(self._seen[key]) <= set(self._texts.values())

    def save(self) -> None:
        """Keep what is known of the examples that were asked about; raises RunError if the disk is full."""
        if self._seen:
            write_json(self._path, self._seen)
