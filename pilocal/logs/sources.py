"""The records of log files, one after the other, so that no file is ever in memory as a whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pilocal.errors import InputError, PilocalError
from pilocal.logs.exchange import BROKEN, HALF_LINE, LONG_LINE, LeftOut
from pilocal.packages import is_installed
from pilocal.task.json_lines import DECODER, Line, read_json
from pilocal.task.text import MARK, PARQUET_MAGIC, absent, check_text

HEAD = 1 << 16
"""Bytes by which the kind of a file is known."""

CHUNK = 1 << 18

NEAR_THE_END = 8
"""Characters of the longest word or escape that may be cut in two."""

LONGEST = 1 << 25
"""Bytes of the longest line, or record of an array, that is read."""

DATA = (".jsonl", ".ndjson", ".json", ".log", ".csv", ".tsv", ".parquet", ".arrow")

NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What a dataset's folder has beside its data."""

Found = tuple[Line, Any]
"""Where a record stands, and the record, or the LeftOut that says why there is none."""


def files_of(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files to read: those named, and of a folder all that hold data, by name.

    Raises InputError for a path where nothing is, and a folder without data.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise InputError(path, absent(path, "no such file"), fix="correct the path")
            if not path.is_file():
                raise InputError(path, "must be a file: it is read twice", fix="write it to a file first")
            found.append(path)
            continue
        inside = [each for each in sorted(path.rglob("*")) if each.is_file() and not _hidden(each, path)]
        data = [each for each in inside if each.suffix.lower() in DATA and each.name not in NO_DATA]
        if not data:
            raise InputError(path, "no data in this folder", fix=f"it should hold files such as {', '.join(DATA)}")
        found += data
    return tuple(dict.fromkeys(found))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def records(path: Path) -> Iterator[Found]:
    """Yield every record of a file.

    Raises InputError for a file that cannot be read, is empty, or holds no record in a form that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(0)
            yield from _reader(path, head)(file, path)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", fix="correct the path or its rights") from None


def _reader(path: Path, head: bytes) -> Any:
    """Return what reads a file that begins with `head`."""
    if head.startswith(PARQUET_MAGIC) or path.suffix.lower() in (".parquet", ".arrow"):
        return _tables
    text = check_text(head, path)
    body = text.lstrip(MARK).lstrip()
    if not body:
        if len(head) == HEAD:
            raise InputError(path, "begins with 64 kB of spaces", fix="write one JSON object per line")
        raise InputError(path, "the file is empty", fix="name a file with records in it")
    if body[0] == "[":
        return _values
    if body[0] == "{":
        return _values if _spread(body) else _lines
    if path.suffix.lower() in (".csv", ".tsv") or _delimiter(body):
        return _table
    return _lines


def _spread(body: str) -> bool:
    """Tell whether the first object goes over several lines."""
    first, end, _ = body.partition("\n")
    return bool(end) and first.rstrip()[-1] in "{[,"


def _lines(file: IO[bytes], path: Path) -> Iterator[Found]:
    """Yield what each line of a JSONL file holds; raises InputError if none of them is JSON."""
    good, broken = False, None
    for number, raw in enumerate(_raw_lines(file), 1):
        where = Line(path, number)
        if raw is None:
            yield where, LeftOut(LONG_LINE)
        elif raw.strip():
            try:
                value = read_json(raw.decode("utf-8"), where)
            except (PilocalError, UnicodeDecodeError) as fault:
                said = fault.problem if isinstance(fault, PilocalError) else "not UTF-8 text"
                broken = broken or InputError(where, "the log is not JSON", got=_shown(raw), fix=KNOWN)
                yield where, LeftOut(BROKEN if raw.endswith(b"\n") or not good else HALF_LINE, said)
            else:
                good = True
                yield from _inside(where, value)
    if not good and broken:
        raise broken


def _raw_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield every line; None for one that is too long."""
    while raw := file.readline(LONGEST):
        if len(raw) < LONGEST or raw.endswith(b"\n"):
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST)
        yield None


KNOWN = "a log is one JSON object per line, a JSON array, or a table (CSV)"


def _shown(raw: bytes) -> str:
    return raw[:80].decode("utf-8", "replace").strip()


def _values(file: IO[bytes], path: Path) -> Iterator[Found]:
    """Yield the records of a JSON array, or of objects that go over several lines."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=None)
    reader = _Values(path, text.read)
    try:
        for where, value in reader.values():
            yield from [(where, value)] if isinstance(value, LeftOut) else _inside(where, value)
    except UnicodeDecodeError:
        raise InputError(f"{path}:{reader.line}", "not UTF-8 text", fix="save it as UTF-8") from None
    finally:
        text.detach()


@dataclass(slots=True)
class _Values:
    """Values of JSON that follow each other, alone or in an array; the text is read bit by bit."""

    path: Path
    read: Callable[[int], str]
    line: int = 1
    """On which the buffer begins."""
    buffer: str = ""
    ended: bool = False

    def values(self) -> Iterator[Found]:
        """Yield every value with its line, and a LeftOut for half a value at the end."""
        self._skip()
        in_array = self.buffer.startswith("[")
        self.buffer = self.buffer[1:] if in_array else self.buffer
        while self._skip() and not (in_array and self.buffer[0] == "]"):
            where = Line(self.path, self.line)
            value, end = _decoded(self.buffer.rstrip(), where)
            if end:
                yield where, value
                self._drop(end)
            elif self.ended:
                yield where, LeftOut(HALF_LINE, "cut off")
                return
            else:
                self._more()
        if in_array and not self.buffer:
            yield Line(self.path, self.line), LeftOut(HALF_LINE, "the array has no end")

    def _skip(self) -> bool:
        """Pass over what is between values; tell whether there is more."""
        while True:
            self._drop(len(self.buffer) - len(self.buffer.lstrip(" \t\r\n,")))
            if self.buffer or self.ended:
                return bool(self.buffer)
            self._more()

    def _drop(self, end: int) -> None:
        self.line += self.buffer.count("\n", 0, end)
        self.buffer = self.buffer[end:]

    def _more(self) -> None:
        if len(self.buffer) > LONGEST:
            raise InputError(f"{self.path}:{self.line}", "a record of more than 32 MiB, or broken JSON", fix=KNOWN)
        read = self.read(max(CHUNK, len(self.buffer)))
        self.ended = not read
        self.buffer += read


def _decoded(buffer: str, where: Line) -> tuple[Any, int]:
    """Return the value that a buffer begins with and where it ends; 0 where the buffer has no whole value."""
    if not buffer:
        return None, 0
    try:
        return DECODER.raw_decode(buffer)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Unterminated") and error.pos < len(buffer) - NEAR_THE_END:
            what = f"broken JSON: {error.msg}"
            raise InputError(f"{where.path}:{where.number + error.lineno - 1}", what, fix="correct it") from None
        return None, 0
    except RecursionError:
        raise InputError(where, "lists and objects are nested too deeply", fix="make the records flat") from None
    except InputError as fault:
        raise InputError(where, fault.problem, got=fault.got, fix=fault.fix) from None


LISTS = ("data", "observations", "generations", "rows", "records", "logs", "requests", "traces", "items", "result")
"""Where an export in one object has its records."""


def _inside(where: Line, value: Any) -> Iterator[Found]:
    """Yield a record, or those that an export in one object, such as a trace, holds."""
    if isinstance(value, dict) and not {"messages", "request", "response", "choices"} & value.keys():
        for key in LISTS:
            inner = value.get(key)
            if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
                for each in inner:
                    yield from _inside(where, each)
                return
    yield where, value


def _delimiter(body: str) -> str | None:
    """Return what separates the columns of a text whose first line looks like the head of a table."""
    first = body.partition("\n")[0]
    return next((mark for mark in ("\t", ";", ",") if mark in first), None)


def _table(file: IO[bytes], path: Path) -> Iterator[Found]:
    """Yield the rows of a table as objects; a cell that holds JSON stays text."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    csv.field_size_limit(LONGEST)
    try:
        mark = _delimiter(text.readline()) or ","
        text.seek(0)
        reader = csv.DictReader(text, delimiter=mark, strict=True)
        if not reader.fieldnames or len(reader.fieldnames) < 2:
            raise InputError(f"{path}:1", "neither JSON nor a table of two columns or more", fix=KNOWN)
        while True:
            line = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if None in row or None in row.values():
                yield Line(path, line), LeftOut(BROKEN, f"a row of other than {len(reader.fieldnames)} columns")
            else:
                yield Line(path, line), dict(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}", f"a broken table: {error}", fix="correct it") from None
    except UnicodeDecodeError:
        raise InputError(path, "not UTF-8 text", fix="save it as UTF-8") from None
    finally:
        text.detach()


def _tables(file: IO[bytes], path: Path) -> Iterator[Found]:
    """Yield the rows of a Parquet or Arrow file; the line is the number of the row."""
    if not is_installed("pyarrow"):
        what = f"{path.suffix.lower().lstrip('.') or 'Parquet'} files need pyarrow, which is not installed"
        raise InputError(path, what, fix="pip install pyarrow, or save the rows as JSONL")
    from pyarrow import ArrowInvalid

    number = 0
    try:
        for batch in _batches(file):
            for row in batch.to_pylist():
                number += 1
                yield Line(path, number), row
    except ArrowInvalid as error:
        raise InputError(path, f"damaged: {str(error).splitlines()[0]}", fix="copy the file again") from None


def _batches(file: IO[bytes]) -> Iterator[Any]:
    import pyarrow.ipc
    import pyarrow.parquet

    magic = file.read(6)
    file.seek(0)
    if magic.startswith(PARQUET_MAGIC):
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256)
    elif magic == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from pyarrow.ipc.open_stream(file)
