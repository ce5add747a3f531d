"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.chart import Line, line_chart

CURVE = "curve.svg"
"""The picture's file, beside compare.md."""


def write_curve(table: Mapping[str, Any], path: Path) -> None:
    """Write compare.json's learning curve: the score of each arm over the number of training examples.

    Raises RunError if the file cannot be written.
    """
    lines = []
    for arm in dict.fromkeys(point["arm"] for point in table["curve"]):
        points = [point for point in table["curve"] if point["arm"] == arm]
        low, high = zip(*(point["interval"] for point in points), strict=True)
        line = Line(
            name=arm, x=[p["examples"] for p in points], y=[p["score"] for p in points], low=list(low), high=list(high)
        )
        lines.append(line)
    title = f"{table['task']}: score with its 95% interval, {len(table['seeds'])} seeds"
    line_chart(path, lines, title=title, x="training examples", y=table["metric"], log_x=True)
