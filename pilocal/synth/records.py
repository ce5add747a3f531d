"""The memory of a synthesis: every answered query as a line of one file, which an interrupted one goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pilocal.run_folder.files import replacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A query with what the prompted model said."""

    query: str
    answer: str
    dropped: str | None = None
    """Why it is not learned from; None if it is."""


class Records:
    """The lines of one synthesis, made for one `key`; those of another are forgotten."""

    def __init__(self, path: Path, key: str) -> None:
        """Read what is there; a line that was being written when the process ended is forgotten, too."""
        self._path = path
        self._head = json.dumps({"key": key}) + "\n"
        self.done = self._read()

    def _read(self) -> list[Labelled]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            return []
        if not lines or lines[0] != self._head:
            return []
        found = []
        for line in lines[1:]:
            try:
                values = json.loads(line) if line.endswith("\n") else {}
                found.append(Labelled(**values))
            except (ValueError, TypeError):
                break
        return found

    def add(self, records: Sequence[Labelled]) -> None:
        """Keep more records; raises RunError if the disk is full."""
        self.done += records
        with replacing(self._path) as file:
            file.write(self._head)
            file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in self.done)
