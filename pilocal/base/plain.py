"""A model folder as other libraries can read it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pilocal.task.text import MARK


@contextmanager
def plain_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder whose JSON files begin with no byte order mark, which mlx-lm and transformers refuse.

    It is the folder itself, or a temporary one with links to its files where one begins with a mark.
    """
    mark = MARK.encode()
    marked = [path for path in folder.glob("*.json") if path.is_file() and _begin(path, len(mark)) == mark]
    if not marked:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="pilocal-base-") as temporary:
        for path in folder.iterdir():
            target = Path(temporary) / path.name
            if path in marked:
                target.write_bytes(path.read_bytes().removeprefix(mark))
            else:
                target.symlink_to(path.resolve())
        yield Path(temporary)


def _begin(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)
