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
    size = max(1, -(-sum(map(len, stages)) // POINTS))
    drawn = [_line("loss", [point for lines in stages for point in means(lines, size)])]
    valid = [(line.step, line.valid_loss) for lines in stages for line in lines if line.valid_loss is not None]
    if valid:
        drawn.append(_line("validation loss", valid))
    marks = [lines[0].step - 0.5 for lines in stages[1:] if lines]
    with tempfile.TemporaryDirectory(prefix="pilocal-") as folder:
        path = Path(folder, "loss.svg")
        panel = Panel(lines=drawn, y="nats per token")
        panels_chart(path, [panel], title=title, x="step", marks=marks)
        return path.read_bytes()


def _line(name: str, points: Sequence[tuple[float, float]]) -> Line:
    return Line(name=name, x=[x for x, _ in points], y=[y for _, y in points])


def means(lines: Sequence[StepLine], size: int) -> Iterator[tuple[float, float]]:
    """Yield the means of `size` steps each: (step, loss)."""
    for begin in range(0, len(lines), size):
        part = lines[begin : begin + size]
        yield sum(line.step for line in part) / len(part), sum(line.loss for line in part) / len(part)
