"""What the base says about rows, kept in files of some rows each; a file that is there is not made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pilocal.errors import RunError
from pilocal.prompt.soft import Soft
from pilocal.prompt.tokens import Row
from pilocal.run_folder.teacher import read_soft, write_soft
from pilocal.training.protocol import Teacher

ROWS = 128
"""Rows whose answers are kept in one file; a run that is killed begins with the first file that is missing."""


@dataclass(frozen=True, slots=True)
class SoftFiles:
    """The files of `count` rows in a folder, made for a `key`."""

    folder: Path
    key: str
    count: int

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of the rows."""
        return [self.folder / f"{number:05}.npz" for number in range(-(-self.count // ROWS))]

    def make(
        self, rows: Sequence[Row], teacher: Callable[[], Teacher], progress: Callable[[int, int], None]
    ) -> list[Path]:
        """Ask the teacher, loaded where that is needed, about the rows whose files are missing; return all files."""
        for number, path in enumerate(self.paths):
            begin = number * ROWS
            if read_soft(path, self.key) is None:
                write_soft(path, teacher().says(rows[begin : begin + ROWS]), self.key)
            progress(min(begin + ROWS, self.count), self.count)
        return self.paths

    def read(self) -> list[Soft]:
        """Return what was said about every row; raises RunError when that is missing."""
        said = list[Soft]()
        for path in self.paths:
            if (kept := read_soft(path, self.key)) is None:
                raise RunError(path, "what the teacher says is not there, or damaged", fix="run the same command again")
            said += kept
        return said
