"""The rows of a stage by reference: an example's text is kept once in a run, a template once in a file of rows.

A file of rows, RUN/stages/N/SPLIT.jsonl, begins with a line that has the template and names the files of the examples;
each line below is the number of an example and those of its shots. The files of the examples, RUN/stages/SPLIT-*.jsonl,
are named by what they hold, so that no row can ever mean another text than the one it was written for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.prompt.render import Record, render
from pilocal.run_folder.files import MISSHAPEN, parse_json, replacing
from pilocal.task import Example
from pilocal.task.working import KEY as WORKING
from pilocal.task.working import faded

FIX = "delete the file and run the same command again"

FADED = ("train", "valid")
"""The splits whose answers may follow a working; the test's answers are what an evaluation compares with."""


def write_examples(folder: Path, split: str, examples: Sequence[Example]) -> Path:
    """Write the examples of a split into the folder of all stages; return the file, which is named by what it holds.

    Raises RunError on a full disk.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_line(example).encode("utf-8", "surrogatepass"))
    path = folder / f"{split}-{digest.hexdigest()[:16]}.jsonl"
    with replacing(path) as file:
        file.writelines(map(_line, examples))
    return path


def forget_examples(kept: Iterable[Path]) -> None:
    """Delete the files of examples beside those that are kept, which no row names any more."""
    known = set(kept)
    for folder in {path.parent for path in known}:
        for path in folder.glob("*-*.jsonl"):
            if path not in known:
                with suppress(OSError):
                    path.unlink()


def write_references(path: Path, header: Mapping[str, Any], chosen: Iterable[Sequence[int]]) -> Path:
    """Write a file of rows: what `header_of` returns, and the shots of each example, least similar first.

    Raises RunError on a full disk.
    """
    with replacing(path) as file:
        file.write(json.dumps(header, ensure_ascii=False) + "\n")
        for number, shots in enumerate(chosen):
            file.write(f'{{"example": {number}, "shots": {list(shots)}}}\n')
    return path


def header_of(template: str, working: float, examples: Path, shots: Path) -> dict[str, Any]:
    """Return the first line of a file of rows: the template, the share of the working, and the files of examples."""
    return {"template": template, "working": working, "examples": examples.name, "shots": shots.name}


def is_header(value: Any) -> bool:
    """Tell whether a line is the first one of a file of rows by reference."""
    return isinstance(value, dict) and "template" in value and "messages" not in value


def begins_with_header(line: str) -> bool:
    """Tell whether a file of rows whose first line this is has rows by reference; a damaged line is none."""
    try:
        return is_header(parse_json(line))
    except MISSHAPEN:
        return False


class References:
    """What makes records of the lines of one file of rows."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Take the file and its first line; raises RunError where that is damaged."""
        kinds = {"template": str, "working": float | int, "examples": str, "shots": str}
        whole = all(isinstance(header.get(name), kind) for name, kind in kinds.items())
        if not whole or not 0 <= header["working"] <= 1:
            raise RunError(f"{path}:1", "damaged: not the head of a file of rows", got=header, fix=FIX)
        self._template: str = header["template"]
        self._working = float(header["working"]) if path.stem in FADED else 0.0
        folder = path.parent.parent
        self._files = {name: folder / Path(header[name]).name for name in ("examples", "shots")}
        self._read: dict[Path, list[Example]] = {}

    def record(self, line: Any, where: str) -> Record:
        """Return the record of a line; raises RunError for a damaged one, and for examples that are gone."""
        try:
            numbers = [line["example"], *line["shots"]]
            whole = all(type(number) is int and number >= 0 for number in numbers)
        except MISSHAPEN:
            whole = False
        if not whole:
            raise RunError(where, "damaged: not a rendered record", got=line, fix=FIX)
        try:
            asked = self._examples("examples")[numbers[0]]
            shots = [self._examples("shots")[number] for number in numbers[1:]]
        except IndexError:
            raise RunError(where, "damaged: there is no such example", got=line, fix=FIX) from None
        return render(self._template, shots, faded(asked, self._working))

    def _examples(self, name: str) -> list[Example]:
        path = self._files[name]
        if path not in self._read:
            self._read[path] = list(_read_examples(path))
        return self._read[path]


def _line(example: Example) -> str:
    """Return an example as a line: all that is rendered of it."""
    known = {
        "query": example.query,
        "answer": example.answer,
        "history": example.history,
        "unlearned": example.unlearned,
        "slots": dict(example.slots),
        WORKING: example.extra.get(WORKING, ""),
    }
    kept = {name: value for name, value in known.items() if value or name in ("query", "answer")}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def located_lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Yield where each line stands ("FILE:LINE") and the line; raises RunError where `what` is gone, or no text."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line.removesuffix("\n")
    except FileNotFoundError:
        raise RunError(path, f"{what} are gone", fix="run the same command again") from None
    except UnicodeDecodeError as error:
        raise RunError(path, f"damaged: {error}", fix=FIX) from None


def _read_examples(path: Path) -> Iterator[Example]:
    return (_example(line, where) for where, line in located_lines(path, "the examples of the rendered rows"))


def _example(line: str, where: str) -> Example:
    try:
        found = parse_json(line)
        history = tuple((str(role), str(text)) for role, text in found.get("history", ()))
        return Example(
            id="",
            query=str(found["query"]),
            answer=str(found["answer"]),
            history=history,
            unlearned=tuple(int(number) for number in found.get("unlearned", ())),
            slots={str(name): str(value) for name, value in found.get("slots", {}).items()},
            extra={WORKING: str(found[WORKING])} if WORKING in found else {},
        )
    except MISSHAPEN:
        raise RunError(where, "damaged: not an example", got=line, fix=FIX) from None
