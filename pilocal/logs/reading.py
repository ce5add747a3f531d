"""The rows of log files, one after the other: what each says, or why it is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pilocal.errors import InputError, did_you_mean
from pilocal.logs.exchange import Exchange, LeftOut
from pilocal.logs.forms import ANSWER, COLUMNS, QUERY, exchange_of
from pilocal.logs.sources import records
from pilocal.progress import Progress
from pilocal.task.json_lines import Line

EVERY = 500
"""Rows between two reports of progress."""


def read(
    files: Sequence[Path], columns: Mapping[str, str], progress: Progress, what: str
) -> Iterator[tuple[Line, Exchange | LeftOut]]:
    """Yield every row of some files.

    Raises InputError for a file that cannot be read, or that lacks a column that the user named.
    """
    total = sum(path.stat().st_size for path in files) // 1024 + 1
    done = count = 0
    for path in files:
        checked = not columns
        for where, record in records(path):
            count += 1
            if count % EVERY == 0:
                progress(what, min(done, total - 1), total, f"{count} rows")
            if not checked and isinstance(record, dict):
                checked = True
                _check_columns(record, columns, where)
            try:
                if isinstance(record, LeftOut):
                    raise record
                yield where, exchange_of(record, where, columns)
            except LeftOut as reason:
                yield where, reason
        done += path.stat().st_size // 1024
    progress(what, total, total, f"{count} rows")


def read_columns(text: str) -> dict[str, str]:
    """Return which columns a text such as query=question,answer=reply names.

    Raises InputError for anything else.

    >>> read_columns("query=question, answer=reply")
    {'query': 'question', 'answer': 'reply'}
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, mark, name = (each.strip() for each in part.partition("="))
        if not mark or not name:
            raise InputError("--columns", "must be query=NAME,answer=NAME", got=part, fix="name both columns")
        if key not in COLUMNS:
            raise InputError("--columns", "no such role of a column", got=key, fix=did_you_mean(key, COLUMNS))
        found[key] = name
    if found and not {QUERY, ANSWER} <= found.keys():
        raise InputError("--columns", "must name the query and the answer", got=text, fix="query=NAME,answer=NAME")
    return found


def _check_columns(record: Mapping[str, object], columns: Mapping[str, str], where: Line) -> None:
    for name in columns.values():
        if name not in record:
            raise InputError(where, "no such column", got=name, fix=did_you_mean(name, map(str, record)))
