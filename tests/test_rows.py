"""The rendered records of a run: what is written is what is read, and damage is one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import RunError
from pilocal.prompt.render import Record
from pilocal.prompt.tokens import tokenize
from pilocal.run_folder.rows import located_records, read_records, read_rows, write_records

TEXTS = ("2+2", "one\u2028line", "caf\u00e9 \x85 \U0001f600", "")
"""Some hold what `str.splitlines` takes for the end of a line."""
RECORDS = [
    Record(messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "4"}]) for text in TEXTS
]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = write_records(tmp_path / "0", "valid", RECORDS)
    assert path.read_text(encoding="utf-8").count("\n") == len(RECORDS)
    assert read_records(tmp_path / "0", "valid") == RECORDS
    assert [where for where, _ in located_records(tmp_path / "0", "valid")] == [f"{path}:{n}" for n in (1, 2, 3, 4)]


def test_rows_are_the_records_in_tokens(starter: Base, tmp_path: Path) -> None:
    write_records(tmp_path, "train", RECORDS)
    assert read_rows(tmp_path, "train", starter.tokenizer) == [tokenize(each, starter.tokenizer) for each in RECORDS]


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": "user", "con',
        "",
        "[]",
        "{}",
        '{"messages": []}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": 1}]}',
        "\x00" * 20,
    ],
)
def test_a_damaged_line_is_named_by_file_and_number(line: str, starter: Base, tmp_path: Path) -> None:
    path = write_records(tmp_path, "test", RECORDS)
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]), encoding="utf-8")
    for read in (lambda: read_records(tmp_path, "test"), lambda: read_rows(tmp_path, "test", starter.tokenizer)):
        with pytest.raises(RunError) as caught:
            read()
        said = str(caught.value)
        assert said.startswith(f"{path}:3: damaged: not a rendered record; ")
        assert said.endswith("delete the file and run the same command again")
        assert "\n" not in said


def test_a_file_that_is_no_text_or_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train\.jsonl: the rendered rows are gone; run the same command again$"):
        read_records(tmp_path, "train")
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(RunError, match=r"train\.jsonl: damaged: .*; delete the file and run the same command again$"):
        read_records(tmp_path, "train")
