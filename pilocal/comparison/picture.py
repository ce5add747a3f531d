"""The curves of a comparison as pictures: over examples, over the adapter's strength, over the tokens that remain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.chart import Line, line_chart

CURVE = "curve.svg"
"""The learning curve's file, beside compare.md."""

STRENGTHS = "strength.svg"
"""The file of the scores over the adapter's strength."""

RESIDUE = "residue.svg"
"""That of the score over the tokens that remain."""


def write_curve(table: Mapping[str, Any], path: Path) -> None:
    """Write compare.json's learning curve: the score of each arm over the number of training examples.

    Raises RunError if the file cannot be written.
    """
    lines = _lines(table["curve"], "arm", "examples")
    line_chart(path, lines, title=_title(table), x="training examples", y=table["metric"], log_x=True)


def write_strengths(table: Mapping[str, Any], path: Path) -> None:
    """Write compare.json's curve of strengths: the score of each schedule over its adapter's strength.

    Raises RunError if the file cannot be written.
    """
    lines = _lines(table["strengths"], "schedule", "strength")
    line_chart(path, lines, title=_title(table), x="strength of the adapter; 1 is as trained", y=table["metric"])


def write_residue(table: Mapping[str, Any], path: Path) -> None:
    """Write the score of compare.json's adapter over the tokens of the prompts that it is asked with.

    Raises RunError if the file cannot be written.
    """
    points = sorted(table["residue"], key=lambda point: point["prompt_tokens"])
    lines = _lines(points, "arm", "prompt_tokens")
    line_chart(path, lines, title=_title(table), x="prompt tokens that remain", y=table["metric"])


def _lines(points: Sequence[Mapping[str, Any]], name: str, x: str) -> list[Line]:
    """Return a line for each name among the points, with its intervals."""
    lines = []
    for one in dict.fromkeys(point[name] for point in points):
        own = [point for point in points if point[name] == one]
        low, high = zip(*(point["interval"] for point in own), strict=True)
        y = [point["score"] for point in own]
        lines.append(Line(name=one, x=[point[x] for point in own], y=y, low=list(low), high=list(high)))
    return lines


def _title(table: Mapping[str, Any]) -> str:
    return f"{table['task']}: score with its 95% interval, {len(table['seeds'])} seeds"
