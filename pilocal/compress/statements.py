"""What a template says, one statement after the other: a list item, a block of code, or a sentence of its prose.

The outline, from which compressors remove words, goes by lines, and by sentences of English. Here prose is put together
where its lines are broken by width, and cut into sentences in any script, whether they begin with a capital or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from pilocal.compress.outline import FENCE, Outline, Unit

END = re.compile(
    r"(?<=[.!?\u2026])(?P<quote>[\"'\u201d\u2019)\]]*)(?P<space>\s+)(?=\S)"
    r"|(?<=[\u3002\uff01\uff1f\uff61])[\u300d\u300f\u201d\u2019)\uff09]*\s*(?=\S)"
)
"""Where a sentence may end; in Chinese and Japanese no space follows."""

SENTENCE_ENDS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]")

MARKUP = tuple("<{[")
"""What begins a text that is no prose."""

ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:(?:[^\W\d_]\.)+|(?:mr|mrs|ms|dr|prof|st|vs|approx|ca|cf|fig|inc|ltd|bzw|usw|nr)\.)$", re.I
)
"""A word with a full stop behind which a sentence goes on."""

NUMBERED = re.compile(r"(?:^|\s)(?:no|nr|art|p|pp|vol|sec|ch|fig)\.$", re.I)
"""One behind which it goes on where a number follows."""

NARROWEST = 30
"""Characters of a line that may be broken by width; shorter ones are lines of their own."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A part of the template from `begin` to `end`."""

    begin: int
    end: int
    unit: Unit
    """The first of the outline's units in it."""


def read_statements(outline: Outline) -> list[Statement]:
    """Return what a template states, in its order; headings, labels and turns of a dialogue are left out."""
    spans = outline.spans
    whole = [
        Statement(spans[unit.words[0]][0], spans[unit.words[-1]][1], unit)
        for unit in outline.units
        if unit.words and not (unit.is_heading or unit.is_decoration or unit.is_turn)
    ]
    found: list[Statement] = []
    for paragraph in _paragraphs(outline.template, whole):
        first = paragraph[0]
        if not _is_prose(outline.template, first):
            found += paragraph
            continue
        bounds = [first.begin, *_ends(outline.template, first.begin, paragraph[-1].end), paragraph[-1].end]
        found += [Statement(begin, end, first.unit) for begin, end in pairwise(bounds)]
    return found


def _paragraphs(template: str, statements: list[Statement]) -> Iterator[list[Statement]]:
    """Yield statements that are one piece of prose together, and each other one alone."""
    paragraph: list[Statement] = []
    for one in statements:
        if paragraph and not _goes_on(template, paragraph, one):
            yield paragraph
            paragraph = []
        paragraph.append(one)
    if paragraph:
        yield paragraph


def _goes_on(template: str, paragraph: list[Statement], one: Statement) -> bool:
    """Tell whether a statement is on the line of the last one of a paragraph, or on the next, broken by width."""
    last = paragraph[-1]
    between = template[last.end : one.begin]
    if between.strip() or not (_is_prose(template, last) and _is_prose(template, one)):
        return False
    if "\n" not in between:
        return True
    return between.count("\n") == 1 and _broken_by_width(template, last.end)


def _broken_by_width(template: str, at: int) -> bool:
    """Tell whether a line of prose that ends at a place goes on.

    It does if no line of the paragraph had room for the next one's first word, or if the next begins no sentence.
    """
    before = template.rfind("\n\n", 0, at) + 2 if "\n\n" in template[:at] else 0
    after = template.find("\n\n", at)
    lines = template[before : len(template) if after < 0 else after].split("\n")
    number = template.count("\n", before, at)
    line, word = lines[number].rstrip(), lines[number + 1].split()[0]
    if len(line) < NARROWEST or not word[0].isalnum() or not any(map(SENTENCE_ENDS.search, lines)):
        return False
    width = max(map(len, lines))
    full = all(
        len(one) + 1 + len(following.split()[0]) > width for one, following in pairwise(lines) if following.strip()
    )
    return full or (word[0].islower() and not SENTENCE_ENDS.search(line[-2:]))


def _is_prose(template: str, one: Statement) -> bool:
    """Tell whether a statement is no list item, no block of code and no label."""
    line = template.rfind("\n", 0, one.begin) + 1
    text = template[one.begin : one.end]
    marked = one.unit.is_bullet or _is_item(template[line : one.begin])
    return not marked and not FENCE.match(text) and not text.startswith(MARKUP) and not text.endswith(":")


def _is_item(before: str) -> bool:
    """Tell whether a line begins with a list mark: what stands before its first statement is not a sentence.

    >>> _is_item("  1. "), _is_item("  "), _is_item("It is open. ")
    (True, False, False)
    """
    return bool(re.fullmatch(r"\s*(?:[-*+\u2022]|\(?(?:\d{1,3}|[A-Za-z])[.)])\s+", before))


def _ends(template: str, begin: int, end: int) -> Iterator[int]:
    """Yield where a sentence ends and another begins, between two places."""
    for match in END.finditer(template, begin, end):
        before, after = template[begin : match.start()], template[match.end()]
        in_code, goes_on = before.count("`") % 2 == 1, bool(match["quote"]) and after.islower()
        number = bool(NUMBERED.search(before)) and after.isdigit()
        shortened = match["space"] is not None and bool(ABBREVIATION.search(before))
        if not (in_code or goes_on or number or shortened):
            yield match.end()
