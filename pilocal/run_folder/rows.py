"""The rendered records of a run, RUN/stages/N/SPLIT.jsonl, whole or by reference: one reader, a line at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.prompt.render import Record
from pilocal.prompt.tokens import Row, tokenize_all
from pilocal.run_folder.files import MISSHAPEN, parse_json, replacing
from pilocal.run_folder.references import FIX, References, is_header, located_lines


def write_records(folder: Path, split: str, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write a split of the stage in `folder`, one JSON object per line; return the file.

    Raises RunError on a full disk.
    """
    path = folder / f"{split}.jsonl"
    with replacing(path) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


def read_records(folder: Path, split: str) -> list[Record]:
    """Return a split of the stage in `folder`; raises RunError for a missing file or a damaged line."""
    return [record for _, record in located_records(folder, split)]


def read_rows(folder: Path, split: str, tokenizer: Any) -> list[Row]:
    """Return a split as token rows; raises RunError as `read_records`, InputError as `tokenize`."""
    return [row for rows in read_rows_of_each(folder, split, tokenizer) for row in rows]


def read_rows_of_each(folder: Path, split: str, tokenizer: Any) -> list[list[Row]]:
    """Return the token rows of each record of a split; raises as `read_rows`."""
    return [tokenize_all(record, tokenizer, where) for where, record in located_records(folder, split)]


def located_records(folder: Path, split: str) -> Iterator[tuple[str, Record]]:
    """Yield where each record stands ("FILE:LINE") and the record; raises RunError as `read_records`."""
    path, references = folder / f"{split}.jsonl", None
    for number, (where, line) in enumerate(located_lines(path, "the rendered rows")):
        value = _json(line, where)
        if number == 0 and is_header(value):
            references = References(path, value)
        else:
            yield where, references.record(value, where) if references else _record(value, line, where)


def _json(line: str, where: str) -> Any:
    try:
        return parse_json(line)
    except MISSHAPEN:
        raise RunError(where, "damaged: not a rendered record", got=line, fix=FIX) from None


def _record(record: Any, line: str, where: str) -> Record:
    try:
        whole = all(isinstance(turn["role"], str) and isinstance(turn["content"], str) for turn in record["messages"])
        learned, last = record.get("learned", []), len(record["messages"]) - 1
        whole = whole and all(type(number) is int and 0 < number < last for number in learned)
    except MISSHAPEN:
        whole = False
    if not whole or not record["messages"]:
        raise RunError(where, "damaged: not a rendered record", got=line, fix=FIX)
    found: Record = record
    return found
