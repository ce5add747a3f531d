"""parity.json as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.chart import Line, Panel, panels_chart

LEAST = 1e-9
"""Smaller differences are shown at this height: a logarithmic axis has no 0."""


def write_picture(result: Mapping[str, Any], path: Path) -> None:
    """Write both loss curves, and below them how far losses and gradient norms lie apart; thin lines part the stages.

    Raises RunError if the file cannot be written.
    """
    steps, names = result["steps"], result["backends"]
    x = [step["step"] for step in steps]
    losses = [Line(name=name, x=x, y=[step["loss"][name] for step in steps]) for name in names]
    apart = [
        Line(name=title, x=x, y=[max(step[figure]["relative"], LEAST) for step in steps])
        for figure, title in (("loss", "loss"), ("gradient_norm", "gradient norm"))
    ]
    apart.append(Line(name="tolerance", x=[x[0], x[-1]], y=[result["tolerance"]] * 2))
    panels = [
        Panel(lines=losses, y="loss, nats per token"),
        Panel(lines=apart, y="relative difference", log_y=True),
    ]
    marks = [stage["first_step"] - 0.5 for stage in result["stages"][1:]]
    title = f"The same {len(x)} steps on {' and '.join(names)}"
    panels_chart(path, panels, title=title, x="step", marks=marks)
