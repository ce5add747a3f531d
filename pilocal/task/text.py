"""Files as people bring them: with a byte order mark, in another encoding, packed, or a link that leads nowhere."""

from __future__ import annotations

import codecs
import gc
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, nearest

MARK = "\ufeff"
"""The byte order mark (BOM) that Excel and Notepad put first in what they call UTF-8; it is no part of the text."""

DEEPEST = 100
"""Levels of lists and tables that a value may have."""

PARQUET = "import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)"

PACKED: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", "unpack it: gzip -dc {file} > {plain}"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it: zstd -dc {file} > {plain}"),
    (b"BZh", "a bzip2 file", "unpack it: bzip2 -dc {file} > {plain}"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it: xz -dc {file} > {plain}"),
    (b"PAR1", "a Parquet file", f'with pandas and pyarrow installed: python3 -c "{PARQUET}" {{file}} {{plain}}'),
    (b"ARROW1", "an Arrow file", "write it as text, one JSON object per line"),
    (b"PK\x03\x04", "a zip, Excel or Word file", "unpack it, or save it as plain text"),
    (b"SQLite format 3\x00", "an SQLite database", "write what is needed of it as text"),
    (b"%PDF-", "a PDF file", "save it as plain text"),
)
"""What begins with these bytes and is no text, and what to do with it."""

PARQUET_MAGIC = b"PAR1"

WIDE = (b"\xff\xfe", b"\xfe\xff")
"""How UTF-16 and UTF-32 begin."""


def decoded(data: bytes, path: Path) -> str:
    """Return the text of a UTF-8 file, every line end as a line feed and without a byte order mark.

    Raises InputError for another encoding and for a file that is no text, by name where its kind is known.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_text(data, path, error.start) from None
    if "\0" in text:
        raise _no_text(data, path, data.index(b"\0"))
    return text.lstrip(MARK).replace("\r\n", "\n").replace("\r", "\n")


def check_text(head: bytes, path: Path) -> str:
    """Return the text that a UTF-8 file begins with; its last character may be cut in two.

    Raises InputError as `decoded` does.
    """
    for magic, _, _ in PACKED:
        if head.startswith(magic):
            raise _no_text(head, path, 0)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError as error:
        if head.startswith(WIDE) or b"\0" in head[:4]:
            raise _no_text(head, path, error.start) from None
        return head.decode("utf-8", "replace")  # a single line of many may be broken
    if "\0" in text:
        raise _no_text(head, path, head.index(b"\0"))
    return text


def _no_text(data: bytes, path: Path, place: int) -> InputError:
    """Return what is wrong with a file whose byte at `place` is no text."""
    for magic, what, fix in PACKED:
        if data.startswith(magic):
            packed = path.suffix in (".gz", ".zst", ".bz2", ".xz")
            plain = path.with_suffix("") if packed else beside(path)
            named = fix.format(file=shlex.quote(str(path)), plain=shlex.quote(str(plain)))
            return InputError(path, f"this is {what}, not text", fix=named)
    if data.startswith(WIDE) or b"\0" in data[:4]:
        return InputError(path, 'this is UTF-16, which Windows calls "Unicode"', fix="save it as UTF-8")
    line = data.count(b"\n", 0, place) + 1
    return InputError(f"{path}:{line}", "not UTF-8 text", got=data[place : place + 1], fix="save it as UTF-8")


def beside(path: Path) -> Path:
    """Return the file next to another into which a command may write what it makes of it.

    >>> str(beside(Path("a/train.csv"))), str(beside(Path("a/train.jsonl")))
    ('a/train.jsonl', 'a/train.new.jsonl')
    """
    made = path.with_suffix(".jsonl")
    return made if made != path else path.with_suffix(".new.jsonl")


def holds(question: Callable[[], bool]) -> bool:
    """Return what a question about a path is answered with; False for a path that no file system can have.

    Until 3.14, Python's own raise OSError for one that is too long.

    >>> holds(Path("x" * 300).exists), holds(Path(".").is_dir)
    (False, True)
    """
    try:
        return question()
    except OSError:
        return False


def absent(path: Path, what: str) -> str:
    """Return what is wrong with a path where nothing is: a link that leads nowhere, or else `what`."""
    for each in (path, *path.parents):
        if holds(each.is_symlink) and not holds(each.exists):
            link = f"a link to {each.readlink()}, which is not there"
            return link if each == path else f"it lies behind {each}, {link}"
    return what


def meant(path: Path) -> Path | None:
    """Return the path that one where nothing is may mean: a part of its name is another there; None for none."""
    for part in (*reversed(path.parents), path):
        if holds(part.exists):
            continue
        try:
            near = nearest(part.name, [each.name for each in part.parent.iterdir() if not each.name.startswith(".")])
        except OSError:
            return None
        found = part.with_name(near) / path.relative_to(part) if near else None
        return found if found and holds(found.exists) else None
    return None


def home_folder() -> Path:
    """Return the user's home folder; the root for a user who has none, as of a container that runs as a bare number."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def from_home(name: str) -> str:
    """Return a path that the user wrote, with the home folder for a `~` at its beginning; any other as it is.

    >>> from_home("a/~b"), from_home("~no-such-user/x")
    ('a/~b', '~no-such-user/x')
    """
    try:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError:
        return name


def path_of(path: str | Path) -> Path:
    """Return the path that a program gives, with the home folder for a `~` at its beginning."""
    return Path(from_home(str(path)))


def is_deep(value: Any) -> bool:
    """Tell whether lists and tables are nested in a value so deeply that programs stumble over it."""
    level = [value]
    for _ in range(DEEPEST):
        holders = [each for each in level if isinstance(each, dict | list)]
        level = [inner for each in holders for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


def key_of(query: str) -> str:
    """Return what two queries share that differ in spaces, capitals and the mark at their end alone.

    >>> key_of("When do  you open?") == key_of("when do you open")
    True
    """
    words = " ".join(query.split()).casefold()
    return words.rstrip(" .!?\u2026\u3002\uff01\uff1f") or words


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    >>> counted(1, "entry", "entries"), counted(2400, "row")
    ('1 entry', '2,400 rows')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def byte_size(number: int) -> str:
    """Return a number of bytes as people read it.

    >>> byte_size(0), byte_size(2048), byte_size(5 * 2**20), byte_size(3 * 2**30)
    ('0 B', '2.0 KiB', '5.0 MiB', '3.0 GiB')
    """
    left = float(number)
    for unit in ("B", "KiB", "MiB"):
        if left < 1024:
            return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:,.1f} GiB"


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python look for no cycles while many objects are made that have none: it would look at all of them often."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
