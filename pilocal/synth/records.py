"""The memory of a synthesis: what was found as a line of one file, which an interrupted one goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pilocal.run_folder.files import MISSHAPEN, parse_json, read_json, replacing, write_json
from pilocal.run_folder.hashes import fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A query with what the prompted model said."""

    query: str
    answer: str
    dropped: str | None = None
    """Why it is not learned from; None if it is."""
    turns: Sequence[Sequence[str]] = ()
    """What was said after the answer, each with its role."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Return its line."""
        known = asdict(self)
        turns = known.pop("turns")
        return known | ({"turns": turns} if turns else {})


class Line(Protocol):
    """What stands on a line."""

    @property
    def as_json(self) -> dict[str, Any]:
        """Return the line, from whose values it can be made again."""


L = TypeVar("L", bound=Line)


class Records(Generic[L]):
    """The lines of one synthesis, made for one `key`; those of another are forgotten."""

    def __init__(self, path: Path, key: str, kind: Callable[..., L]) -> None:
        """Read what is there; a line that was being written when the process ended is forgotten, too.

        `kind` makes what stands on a line from its values.
        """
        self._path, self._kind = path, kind
        self._head = json.dumps({"key": key}) + "\n"
        self.done = self._read()

    def missing(self, total: int, chunk: int) -> Iterator[int]:
        """Yield where each chunk begins that is not whole yet; what there is of it is forgotten."""
        for begin in range(0, total, chunk):
            if min(begin + chunk, total) > len(self.done):
                del self.done[begin:]
                yield begin

    def _read(self) -> list[L]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            return []
        if not lines or lines[0] != self._head:
            return []
        found = list[L]()
        for line in lines[1:]:
            try:
                values = parse_json(line) if line.endswith("\n") else {}
                found.append(self._kind(**values))
            except MISSHAPEN:
                break
        return found

    def add(self, records: Sequence[L]) -> None:
        """Keep more records; raises RunError if the disk is full."""
        self.done += records
        with replacing(self._path) as file:
            file.write(self._head)
            file.writelines(json.dumps(one.as_json, ensure_ascii=False) + "\n" for one in self.done)


class Remembered:
    """A generator whose every text is kept in a file, so that none is asked for twice."""

    def __init__(self, write: Callable[[Sequence[str]], list[str]], path: Path, key: str, at_once: int) -> None:
        """Read what was written for this `key`, which tells who writes; keep more after every `at_once` requests."""
        self._write, self._path, self._key, self._at_once = write, path, key, at_once
        self._known: dict[str, str] = {}
        try:
            kept = read_json(path)
            if kept["key"] == key:
                self._known = {str(request): str(text) for request, text in kept["texts"].items()}
        except MISSHAPEN:
            pass  # written again

    def __call__(self, requests: Sequence[str]) -> list[str]:
        """Return the text for each request; raises what the generator raises, and RunError if the disk is full."""
        missing = [request for request in requests if fingerprint(request) not in self._known]
        for begin in range(0, len(missing), self._at_once):
            some = missing[begin : begin + self._at_once]
            self._known |= zip(map(fingerprint, some), self._write(some), strict=True)
            write_json(self._path, {"key": self._key, "texts": self._known})
        return [self._known[fingerprint(request)] for request in requests]
