"""The file of the request log where its disk fails: nobody's answer suffers, and what is there can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pilocal.errors import PilocalError, RunError
from pilocal.server import RequestLog, RequestLogEntry


def entry(answer: str = "") -> RequestLogEntry:
    return RequestLogEntry(time="", path="/", status=200, answer=answer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_told_once() -> None:
    told: list[PilocalError] = []
    with RequestLog(Path("/dev/full"), told.append) as log:
        for _ in range(3):
            log.write(entry())
    assert [str(error).partition(";")[0] for error in told] == ["/dev/full: the disk is full"]


def test_a_line_that_is_cut_spoils_no_other(tmp_path: Path) -> None:
    class Cut:
        """A file on a disk that has room for half of the first line."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 20

        def write(self, data: bytes) -> int:
            size = min(self.left, len(data))
            self.left = sys.maxsize
            return int(self.file.write(data[:size]))

        def close(self) -> None:
            self.file.close()

    path = tmp_path / "log"
    with RequestLog(path, lambda error: None) as log:
        log._file = Cut(log._file)  # type: ignore[assignment]
        log.write(entry("one"))
        log.write(entry("two"))
        log.write(entry("half of a pair: \ud83d"))
    cut, *lines = path.read_text().splitlines()
    assert len(cut) == 20
    assert [json.loads(line)["answer"] for line in lines] == ["two", "half of a pair: \ud83d"]


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"log: the file or its folder is gone; "):
        RequestLog(tmp_path / "nowhere" / "log", lambda error: None)
