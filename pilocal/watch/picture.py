"""The losses of a training as a picture, with the borders of its stages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pilocal.chart import Line, Panel, panels_chart
from pilocal.run_folder.log import StepLine

POINTS = 400
"""More steps than these share points; each is the mean of its steps."""


def loss_picture(stages: Sequence[Sequence[StepLine]], title: str) -> bytes:
    """Return the loss and the validation loss over the steps as SVG, with a thin line where a stage begins.

    Raises InputError where matplotlib is missing.
    """
    count = sum(map(len, stages))
    points = [point for lines in stages for point in _points(lines, -(-count // POINTS) or 1)]
    valid = [(line.step, line.valid_loss) for lines in stages for line in lines if line.valid_loss is not None]
    drawn = [Line(name="loss", x=[step for step, _ in points], y=[loss for _, loss in points])]
    if valid:
        drawn.append(Line(name="validation loss", x=[step for step, _ in valid], y=[loss for _, loss in valid]))
    marks = [lines[0].step - 0.5 for lines in stages[1:] if lines]
    with tempfile.TemporaryDirectory(prefix="pilocal-") as folder:
        path = Path(folder, "loss.svg")
        panel = Panel(lines=drawn, y="nats per token")
        panels_chart(path, [panel], title=title, x="step", marks=marks)
        return path.read_bytes()


def _points(lines: Sequence[StepLine], size: int) -> Iterator[tuple[float, float]]:
    """Yield the means of `size` steps each: (step, loss)."""
    for begin in range(0, len(lines), size):
        part = lines[begin : begin + size]
        yield sum(line.step for line in part) / len(part), sum(line.loss for line in part) / len(part)
