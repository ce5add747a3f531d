"""A stage's metrics.jsonl: one line a step, and what can be told from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.run.files import replacing

RECENT = 20
"""How many steps the speed is averaged over."""


class Log:
    """The lines of the steps that were taken so far."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was cut short counts for nothing."""
        self.path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def append(self, line: Mapping[str, Any]) -> None:
        """Add the line of a step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines.append(dict(line))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that were taken after the checkpoint and will be taken again."""
        self.lines = [line for line in self.lines if line["step"] <= step]
        if self.path.is_file():
            with replacing(self.path) as file:
                file.writelines(json.dumps(line) + "\n" for line in self.lines)

    def lowest(self) -> float:
        """Return the lowest validation loss so far, or infinity."""
        return min(self._looks(), default=math.inf)

    def is_stale(self, patience: int | None) -> bool:
        """Tell whether the last `patience` looks at the validation loss brought no new low; never when None."""
        if patience is None:
            return False
        looks = self._looks()
        return bool(looks) and len(looks) - 1 - looks.index(min(looks)) >= patience

    def speed(self) -> str:
        """Return rendered tokens a second and the peak of memory, as the recent steps had them."""
        recent = self.lines[-RECENT:]
        seconds = sum(line["seconds"] for line in recent)
        tokens = sum(line["trained_tokens"] + line["prompt_tokens"] for line in recent)
        peak = max(line["peak_memory"] for line in recent)
        return f"{tokens / max(seconds, 1e-9):,.0f} tokens/s  {peak / 2**30:.2f} GiB"

    def _looks(self) -> list[float]:
        return [line["valid_loss"] for line in self.lines if "valid_loss" in line]
