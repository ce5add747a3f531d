"""Line charts as SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilocal.rundir import replacing

COLOURS = ("#0a6ebd", "#d9480f", "#2b8a3e", "#888888", "#862e9c")
STYLES = ("-", "--", ":", "-.")
"""Lines that lie on one another stay visible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart, its points from left to right."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """Lower ends of the intervals around `y`; empty where there are none."""
    high: Sequence[float] = ()


def line_chart(
    path: Path, lines: Sequence[Line], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False
) -> None:
    """Draw lines, with their intervals as bands; the same lines make the same file.

    `x` and `y` name the axes. Raises RunError when the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pilocal", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            style = STYLES[number % len(STYLES)]
            axes.plot(line.x, line.y, style, color=colour, marker="o", markersize=4, linewidth=2, label=line.name)
            if line.low:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
        if log_x:
            axes.set_xscale("log")
            axes.set_xticks(sorted({value for line in lines for value in line.x}))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        with replacing(path, "wb") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
