"""A picture of how a step's time grows with the template."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from pilocal.chart import Line, line_chart


def draw_growth(result: dict[str, Any], path: Path) -> None:
    """Draw seconds a step over tokens of template for pilocal and mlx-lm."""
    lines = []
    for name, key in (("pilocal", "seconds"), ("mlx-lm", "mlx_lm_seconds")):
        points = [
            (t, median(part[key])) for t, part in zip(result["template"], result["parts"], strict=True) if key in part
        ]
        lines.append(Line(name=name, x=[t for t, _ in points], y=[s for _, s in points]))
    title = "Seconds a training step, batch 8"
    line_chart(path, lines, title=title, x="tokens of template", y="seconds", log_x=True, log_y=True)
