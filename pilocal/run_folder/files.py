"""Files that are whole or not there, and what a full disk says."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pilocal.errors import RunError
from pilocal.task.json_lines import HALF
from pilocal.task.text import home_folder, is_deep

MISSHAPEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a file raises that was cut short, changed by hand or written by another program.

Whoever reads one of pilocal's own files catches all of them around everything that trusts its shape.
"""

MOST_DIGITS = 20
"""Of a whole number, its sign included; with more it may be none that a float can be."""

FULL = ("the disk is full", "free some space and run again; the run goes on where it was")
MANY = ("too many files are open", "raise the limit, such as `ulimit -n 4096`, and run again")

KNOWN = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EMFILE: MANY,
    errno.ENFILE: MANY,
    errno.EROFS: ("the disk is read-only", "make it writable, or take a folder on another one"),
    errno.EIO: ("the disk fails", "copy the run to another one and run again there; it goes on where it was"),
    errno.ENAMETOOLONG: ("a name in the path is too long for the file system", "take a shorter one"),
    errno.ENOENT: ("the file or its folder is gone", "put it back and run again; the run goes on where it was"),
}
"""What is said of the errors that a disk gives, and what to do."""


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its place once it is written and synced.

    Whatever goes wrong, `path` is either the old file or the new one, never half of it. Raises RunError on a full disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder's files, each whole or not at all; raises RunError on a full disk."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            with replacing(target / path.relative_to(source), "wb") as file:
                file.write(path.read_bytes())


def read_json(path: Path) -> Any:
    """Return the value of a JSON file that pilocal wrote; raises OSError, and ValueError as `parse_json`."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that pilocal wrote.

    Raises ValueError for one that is none, and for what is never written: a hundred levels, half a surrogate pair, a
    whole number of more than MOST_DIGITS.
    """
    try:
        value = json.loads(text, parse_int=_integer)
        deep = is_deep(value)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError("lists and objects are nested too deeply")
    if HALF.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half a surrogate pair, which is no character")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def disk_error(path: Path | str, error: OSError) -> RunError:
    """Turn an OSError into a line that says what to do."""
    if error.errno in KNOWN:
        what, fix = KNOWN[error.errno]
        return RunError(path, what, fix=fix)
    return RunError(path, f"cannot write: {error.strerror or error}", fix="check the path and its permissions")


def unreadable(path: Path | str, error: OSError) -> RunError:
    """Turn an OSError of something that is read into a line that says what to do."""
    return RunError(path, f"cannot be read: {error.strerror or error}", fix="check the path and its permissions")


def cache_folder() -> Path:
    """Return where this system keeps what pilocal can make again: below XDG_CACHE_HOME where that is set."""
    home = home_folder()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "pilocal" / "pilocal" / "Cache"
    usual = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", "").strip() or usual) / "pilocal"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one."""
    with replacing(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
