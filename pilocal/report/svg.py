"""Pictures of pilocal.chart as a part of the page: in its colours, with nothing but shapes and letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from pilocal.report.markup import Html, box, tag, text
from pilocal.report.theme import OF_CHARTS

LARGEST = 300_000
"""Bytes of a picture that a page takes in."""

SHAPES = frozenset({"svg", "g", "defs", "clipPath", "path", "rect", "circle", "line", "use", "text", "tspan"})
"""The elements that are kept; all others are left out with what is in them."""

PLACES = frozenset({"x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height", "d", "transform", "viewBox"})
"""The attributes that are kept as they are; those that name or style something are read."""

COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
INSIDE = re.compile(r"url\(#([\w-]+)\)")


def figure(caption: str, draw: Callable[[Path], None], *, name: str, says: str, fits: bool = False) -> Html:
    """Return a picture that `draw` writes, below it a caption; `says` is its text for those who do not see it.

    `name` is a word of its own for each picture of a page. One that `fits` is as narrow as the screen, others scroll.
    """
    with TemporaryDirectory(prefix="pilocal-report-") as folder:
        path = Path(folder) / "chart.svg"
        draw(path)
        return figure_of(path, caption, name=name, says=says, fits=fits)


def figure_of(path: Path, caption: str, *, name: str, says: str, fits: bool = False) -> Html:
    """Return a picture that lies on disk as `figure` does; nothing where there is none, or not one of pilocal's."""
    try:
        drawn = path.read_bytes()
        root = ElementTree.fromstring(drawn) if len(drawn) <= LARGEST else None
    except (OSError, ElementTree.ParseError):
        return Html()
    if root is None or _local(root.tag) != "svg":
        return Html()
    kind = "chart fits" if fits else "chart"
    shown = _Picture(name).markup(root, f' class="{kind}" role="img" aria-label="{text(says)}"')
    return tag("figure", shown if fits else box(shown, f"Picture: {caption}"), tag("figcaption", caption))


class _Picture:
    """Writes the elements of one picture; its names get a word in front, since a page has several pictures."""

    def __init__(self, name: str) -> None:
        self._name = name

    def markup(self, element: ElementTree.Element, more: str = "") -> Html:
        """Return an element with what is in it."""
        name = _local(element.tag)
        if name not in SHAPES:
            return Html()
        given = "".join(f' {key}="{text(value, LARGEST)}"' for key, value in self._attributes(element, name))
        inside = "".join(self.markup(child) + text((child.tail or "").strip()) for child in element)
        return Html(f"<{name}{given}{more}>{text((element.text or '').strip())}{inside}</{name}>")

    def _attributes(self, element: ElementTree.Element, name: str) -> Iterator[tuple[str, str]]:
        for full, value in element.attrib.items():
            key = _local(full)
            if key in PLACES and not (name == "svg" and key in ("width", "height")):
                yield key, value
            elif key == "id":
                yield key, f"{self._name}-{value}"
            elif key == "href" and value.startswith("#"):
                yield key, f"#{self._name}-{value[1:]}"
            elif key == "clip-path" and (found := INSIDE.fullmatch(value)):
                yield key, f"url(#{self._name}-{found[1]})"
            elif key == "style" and "(" not in INSIDE.sub("", value):
                yield key, self._style(value)

    def _style(self, value: str) -> str:
        value = INSIDE.sub(lambda found: f"url(#{self._name}-{found[1]})", value)
        return COLOUR.sub(_themed, value)


def _themed(colour: re.Match[str]) -> str:
    known = OF_CHARTS.get(colour[0].lower())
    return f"var(--{known})" if known else colour[0]


def _local(name: object) -> str:
    """Return a name without its namespace."""
    return str(name).rpartition("}")[2]
