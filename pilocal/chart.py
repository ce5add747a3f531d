"""Charts as SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from pilocal.packages import is_installed, require_packages
from pilocal.run_folder.files import replacing

COLOURS = ("#0a6ebd", "#d9480f", "#2b8a3e", "#888888", "#862e9c")
STYLES = ("-", "--", ":", "-.")
"""Lines that lie on one another stay visible."""
DOTS = 20
"""A line of more points has no dots."""
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
"""Of points, one after the other; those that lie on one another stay visible, as the later ones are smaller."""

LONGEST_NAME = 64
"""Characters of a bar's name; longer ones are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Named values, drawn as bars from 0 below one another."""

    title: str
    names: Sequence[str]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart, its points from left to right."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """Lower ends of the intervals around `y`; empty where there are none."""
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines over one axis of values."""

    lines: Sequence[Line]
    y: str
    """The axis's name."""
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value with its interval."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """One value for each of some named things."""

    name: str
    x: Sequence[float]


def line_chart(
    path: Path, lines: Sequence[Line], *, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False
) -> None:
    """Draw lines, with their intervals as bands; the same lines make the same file.

    `x` and `y` name the axes. Raises RunError when the file cannot be written.
    """
    panels_chart(path, [Panel(lines=lines, y=y, log_y=log_y)], title=title, x=x, log_x=log_x)


def can_draw() -> bool:
    """Tell whether matplotlib is installed, without importing it."""
    return is_installed("matplotlib")


def points_chart(
    path: Path, points: Sequence[Point], *, title: str, x: str, y: str, arrow: tuple[int, int] | None = None
) -> None:
    """Draw named points with their intervals over an axis from 0; `y` goes from 0 to 1.

    `arrow` leads from one point to another, by their numbers. Raises InputError where matplotlib is missing, RunError
    when the file cannot be written.
    """
    with _figure(path, 3 + 0.2 * len(points), width=4.6) as figure:
        axes = figure.subplots()
        if arrow:
            start, end = (points[number] for number in arrow)
            style = {"arrowstyle": "->", "color": "#bbbbbb", "linewidth": 1.5, "shrinkA": 8, "shrinkB": 10}
            axes.annotate("", xy=(end.x, end.y), xytext=(start.x, start.y), arrowprops=style)
        for number, point in enumerate(points):
            errors = [[max(point.y - point.low, 0)], [max(point.high - point.y, 0)]]
            axes.errorbar(
                [point.x],
                [point.y],
                yerr=errors,
                fmt=SHAPES[number % len(SHAPES)],
                color=COLOURS[number % len(COLOURS)],
                markerfacecolor="none",
                markersize=max(12 - 1.5 * number, 5),
                markeredgewidth=1.8,
                capsize=3,
                label=point.name,
            )
        axes.set_xlim(0, 1.06 * max(point.x for point in points) or 1)
        axes.set_ylim(-0.05, 1.08)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower left", frameon=False, fontsize=9)
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)


def bars_chart(path: Path, groups: Sequence[Bars], *, title: str, x: str) -> None:
    """Draw groups of bars below one another over the same x; each takes the height that its names need.

    A group without bars is left out. The same bars make the same file. Raises InputError where matplotlib is missing,
    RunError when the file cannot be written.
    """
    drawn = [group for group in groups if group.names]
    heights = [len(group.names) + 2.5 for group in drawn]  # in bars, the title and the axis of each included
    with _figure(path, 0.6 + 0.2 * sum(heights), width=9) as figure:
        rows = figure.subplots(len(drawn), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for number, (axes, group) in enumerate(zip(rows, drawn, strict=True)):
            places = range(len(group.names))
            axes.barh(places, group.values, height=0.7, color=COLOURS[number % len(COLOURS)])
            axes.axvline(0, color="#888888", linewidth=0.8)
            axes.set_yticks(places, [_cut(name) for name in group.names], fontsize=8)
            axes.set_ylim(len(group.names) - 0.5, -0.5)
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", labelbottom=True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_title(group.title, loc="left", fontsize=9)
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
        rows[-1].set_xlabel(x)


def _cut(name: str) -> str:
    """Return a name on one line, its end cut off where it is long."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 1].rstrip()}\u2026"


def panels_chart(
    path: Path, panels: Sequence[Panel], *, title: str, x: str, log_x: bool = False, marks: Sequence[float] = ()
) -> None:
    """Draw panels below one another over the same x, with a thin vertical line at each of `marks`.

    Lines of many points are drawn without a dot at each. Raises RunError when the file cannot be written.
    """
    with _figure(path, 1 + 3 * len(panels)) as figure:
        from matplotlib.ticker import StrMethodFormatter

        rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            for number, line in enumerate(panel.lines):
                colour = COLOURS[number % len(COLOURS)]
                style = STYLES[number % len(STYLES)]
                dot = "o" if len(line.x) <= DOTS else ""
                axes.plot(line.x, line.y, style, color=colour, marker=dot, markersize=4, linewidth=2, label=line.name)
                if line.low:
                    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
            for mark in marks:
                axes.axvline(mark, color="#bbbbbb", linewidth=0.8)
            if log_x:
                axes.set_xscale("log")
                axes.set_xticks(sorted({value for line in panel.lines for value in line.x}))
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
                axes.minorticks_off()
            if panel.log_y:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.set_ylabel(panel.y)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        rows[0].set_title(title, loc="left", fontsize=11)
        rows[-1].set_xlabel(x)


def dots_chart(path: Path, names: Sequence[str], series: Sequence[Dots], *, title: str, x: str) -> None:
    """Draw a line of dots for each name, one of each series, the first name on top; the first series is hollow.

    `x` names the axis, which goes from 0 to 1. Raises RunError when the file cannot be written.
    """
    with _figure(path, 1.3 + 0.2 * len(names)) as figure:
        axes = figure.subplots()
        places = range(len(names))
        for number, dots in enumerate(series):
            colour = COLOURS[number % len(COLOURS)]
            fill, size = ("none", 8) if number == 0 else (colour, 4)  # both are seen where they are equal
            axes.plot(dots.x, places, "o", color=colour, markerfacecolor=fill, markersize=size, label=dots.name)
        axes.set_yticks(list(places), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel(x)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)


@contextmanager
def _figure(path: Path, height: float, width: float = 7) -> Iterator[Any]:
    """Yield a figure of so many inches and write it; raises InputError where there is no matplotlib."""
    require_packages(path, "matplotlib")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with (
        rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "pilocal",
                "font.family": "sans-serif",
                "text.parse_math": False,  # a name may have a $ in it
            }
        ),
        catch_warnings(),
    ):
        filterwarnings("ignore", message="Glyph .* missing")  # the browser has the letters that matplotlib measures
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        with replacing(path, "wb") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
