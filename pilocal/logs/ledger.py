"""What is said of rows, one line each in left_out.jsonl: why a row is left out, or what was seen in a row."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from pilocal.task.json_lines import Line

FILE = "left_out.jsonl"


@dataclass(slots=True)
class Ledger:
    """Writes remarks about rows and counts them."""

    file: IO[str]
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by the reason why they are left out."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Rows that are kept by what was seen in them."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each reason and remark is first."""

    def leave_out(self, where: Line, reason: str, detail: str = "") -> None:
        """Record that a row is left out."""
        self.left_out[reason] += 1
        self._write(where, reason, detail, kept=False)

    def remark(self, where: Line, what: str, detail: str = "") -> None:
        """Record what was seen in a row that is kept."""
        self.remarks[what] += 1
        self._write(where, what, detail, kept=True)

    def _write(self, where: Line, reason: str, detail: str, *, kept: bool) -> None:
        self.first.setdefault(reason, str(where))
        line = {"file": str(where.path), "line": where.number, "reason": reason, "detail": detail, "kept": kept}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        self.file.write(text.encode(errors="backslashreplace").decode())  # half a surrogate pair is no character

    @property
    def said(self) -> list[str]:
        """Lines for people, the most frequent first."""
        left = [
            f"left out, {reason}: {count} (first: {self.first[reason]})"
            for reason, count in self.left_out.most_common()
        ]
        seen = [f"kept, {what}: {count} (first: {self.first[what]})" for what, count in self.remarks.most_common()]
        return left + seen
