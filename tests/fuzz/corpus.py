"""corpus.jsonl: an input for every fault that was ever found, as short as it could be made; the suite knocks with all.

A line is {"door": ..., "what": ..., "files": {NAME: TEXT or {"base64": ...}}}.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.door import Files

CORPUS = Path(__file__).with_name("corpus.jsonl")


@dataclass(frozen=True, slots=True)
class Case:
    """A fault that was found."""

    door: str
    what: str
    files: Files


def line_of(case: Case) -> str:
    """Return the line of a case in CORPUS, without its end."""
    files = {name: _written(data) for name, data in case.files.items()}
    return json.dumps({"door": case.door, "what": case.what, "files": files}, ensure_ascii=True)


def read_corpus(path: Path = CORPUS) -> list[Case]:
    """Return every case."""
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else ())
    return [Case(one["door"], one["what"], {name: _read(data) for name, data in one["files"].items()}) for one in found]


def _written(data: bytes) -> str | Mapping[str, str]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _read(data: Any) -> bytes:
    return data.encode("utf-8") if isinstance(data, str) else base64.b64decode(data["base64"])


def shortened(files: Files, fails: Callable[[Files], bool], tries: int = 400) -> Files:
    """Return an input as short as taking parts out makes it while it still fails; a file takes `tries` at most."""
    for name in [*files]:
        fewer = {other: data for other, data in files.items() if other != name}
        if fewer and fails(fewer):
            files = fewer
    for name in [*files]:
        others = dict(files)
        files = others | {name: _shorter(files[name], lambda data: fails(others | {name: data}), tries)}  # noqa: B023
    return files


def _shorter(data: bytes, fails: Callable[[bytes], bool], tries: int) -> bytes:
    """Take parts out, halves first, then ever smaller ones."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data) and (tries := tries - 1) > 0:
            fewer = data[:at] + data[at + size :]
            data, at = (fewer, at) if fails(fewer) else (data, at + size)
        size //= 2
    return data
