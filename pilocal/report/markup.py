"""HTML from texts: whatever comes from a run is escaped here, and only here."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1000
"""Characters of a text that are shown."""

UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What a page of UTF-8 cannot hold, or a reader cannot see."""


class Html(str):
    """Markup; any other text is escaped before it becomes some."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Long:
    """A cell whose text may be long: it is wrapped, and stands at the left."""

    text: str | Html


def plain(value: object) -> str:
    """Return a value as a text without what a page cannot hold.

    >>> plain("a" + chr(0))
    'a\ufffd'
    """
    return UNSEEN.sub("\ufffd", str(value))


def text(value: object, longest: int = LONGEST) -> Html:
    """Return a value as text of the page, cut where it is long.

    >>> text("<b>&</b>"), text("abcdef", 4), text("a" + chr(0))
    ('&lt;b&gt;&amp;&lt;/b&gt;', 'abcd\u2026 (2 more characters)', 'a\ufffd')
    """
    if isinstance(value, Html):
        return value
    whole = plain(value)
    more = len(whole) - longest
    shown = whole if more <= 0 else f"{whole[:longest]}\u2026 ({more:,} more characters)"
    return Html(html.escape(shown))


def join(*parts: Html) -> Html:
    """Return parts on lines of their own, without the empty ones."""
    return Html("\n".join(part for part in parts if part))


def tag(name: str, *inside: object, **attributes: str) -> Html:
    """Return an element; what is inside is escaped unless it is markup. `kind` is the class.

    >>> tag("p", "1 < 2", kind="note")
    '<p class="note">1 &lt; 2</p>'
    """
    named = {"class" if key == "kind" else key.replace("_", "-"): value for key, value in attributes.items()}
    given = "".join(f' {key}="{text(value)}"' for key, value in named.items())
    return Html(f"<{name}{given}>{''.join(text(part) for part in inside)}</{name}>")


def section(title: str, *parts: Html) -> Html:
    """Return a section below its heading; nothing where it has no parts."""
    shown = [part for part in parts if part]
    return tag("section", join(tag("h2", title), *shown)) if shown else Html()


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]], *, tall: bool = False) -> Html:
    """Return a table that scrolls in a box of its own; the first cell of a row is its heading.

    A `tall` one has a height on the screen, and all its rows in print.
    """
    left = [bool(rows) and all(isinstance(row[number], Long) for row in rows) for number in range(len(head))]
    kinds = [{"kind": "text"} if each else {} for each in left]
    top = tag("tr", *(tag("th", name, scope="col", **kind) for name, kind in zip(head, kinds, strict=True)))
    lines = [tag("tr", _cell("th", row[0], scope="row"), *(_cell("td", cell) for cell in row[1:])) for row in rows]
    made = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", join(*lines)))
    return box(made, caption, "box tall" if tall else "box")


def box(inside: Html, label: str, kind: str = "box") -> Html:
    """Return a part of the page that scrolls by itself, with the keyboard as well."""
    return tag("div", inside, kind=kind, role="region", aria_label=label, tabindex="0")


def _cell(name: str, cell: object, **attributes: str) -> Html:
    if isinstance(cell, Long):
        return tag(name, cell.text, kind="long" if name == "th" else "text long", **attributes)
    return tag(name, "" if cell is None else cell, **attributes)


def command(line: str) -> Html:
    """Return a command line, whose options are not broken at their hyphens."""
    words = [tag("span", word, kind="flag") if word.startswith("-") else text(word) for word in line.split(" ")]
    return tag("code", Html(" ".join(words)))


def missing(what: str, line: str) -> Html:
    """Return what is not there yet, and the command that makes it."""
    return tag("p", f"{what} ", command(line), " makes it.", kind="missing")
