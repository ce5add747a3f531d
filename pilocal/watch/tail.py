"""A metrics.jsonl that grows while it is read, maybe on another machine: every look reads what is new."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from pilocal.run_folder.files import MISSHAPEN
from pilocal.run_folder.log import StepLine

MARK = 64
"""Bytes before what is new that must still stand there; else the file is another one and is read anew."""


class Tail:
    """The whole lines of a metrics.jsonl; one that is damaged is counted and left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.lines: list[StepLine] = []
        self.damaged = 0
        self._read = 0
        self._mark = b""

    def look(self) -> None:
        """Read the lines that were added; a last one that has no end yet waits. Raises OSError."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read - len(self._mark))
                new = file.read()
                if not new.startswith(self._mark):  # a resumed training dropped lines, or the folder is another run's
                    self._forget()
                    file.seek(0)
                    new = file.read()
        except FileNotFoundError:
            self._forget()
            return
        known = len(self._mark)
        whole = new[: new.rfind(b"\n") + 1]
        for text in whole[known:].splitlines():
            self._take(text)
        if len(whole) > known:
            self._read += len(whole) - known
            self._mark = whole[-MARK:]

    def _take(self, text: bytes) -> None:
        try:
            line = StepLine.from_json(text.decode())
        except MISSHAPEN:
            self.damaged += 1
            return
        if is_sound(line):
            self.lines.append(line)
        else:
            self.damaged += 1


def is_sound(line: StepLine) -> bool:
    """Tell whether every figure of a line is a finite number, and none that counts or measures is below 0."""
    values = asdict(line)
    values.pop("decision")
    optional = {name: values.pop(name) for name in ("valid_loss", "valid_seconds")}
    figures = [*values.values(), *(value for value in optional.values() if value is not None)]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in figures):
        return False
    counted = (line.step, line.trained_tokens, line.prompt_tokens, line.seconds, line.peak_memory)
    return min(*counted, line.valid_seconds or 0) >= 0
