"""Pictures that a report draws, and those that a run has on disk already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pilocal.chart import can_draw
from pilocal.report.markup import Html, tag
from pilocal.report.svg import figure, figure_of

INSTALL = "pip install 'pilocal[plot]'"


def picture(caption: str, draw: Callable[[Path], None], *, name: str, says: str, fits: bool = False) -> Html:
    """Return a picture with a caption, or how to get it where matplotlib is missing; the rest is as for `figure`."""
    if can_draw():
        return figure(caption, draw, name=name, says=says, fits=fits)
    said = (f"{says} ", "The picture needs matplotlib: ", tag("code", INSTALL))
    return tag("p", *said, kind="missing")


def picture_of(path: Path, caption: str, *, name: str, rows: Sequence[object] = (True,)) -> Html:
    """Return a picture that lies on disk, where there are rows that it shows; nothing where it is not there."""
    says = f"{caption} The figures are in the table of this section."
    return figure_of(path, caption, name=name, says=says) if rows else Html()
