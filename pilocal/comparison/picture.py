"""The learning curve, and the score over the tokens that remain, as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.chart import Line, line_chart

CURVE = "curve.svg"
"""The picture's file, beside compare.md."""

RESIDUE = "residue.svg"
"""That of the score over the tokens that remain."""


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


def write_residue(table: Mapping[str, Any], path: Path) -> None:
    """Write the score of compare.json's adapter over the tokens of the prompts that it is asked with.

    Raises RunError if the file cannot be written.
    """
    points = sorted(table["residue"], key=lambda point: point["prompt_tokens"])
    low, high = zip(*(point["interval"] for point in points), strict=True)
    line = Line(
        name=points[0]["arm"],
        x=[point["prompt_tokens"] for point in points],
        y=[point["score"] for point in points],
        low=list(low),
        high=list(high),
    )
    title = f"{table['task']}: score with its 95% interval, {len(table['seeds'])} seeds"
    line_chart(path, [line], title=title, x="prompt tokens that remain", y=table["metric"])
