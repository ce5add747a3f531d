"""A text beside what it was: words that are gone or new are marked in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter

from pilocal.report.markup import Html, tag, text

ALONE = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Letters that are words by themselves."""

WORDS = re.compile(rf"\s*(?:[{ALONE}]|[^\W{ALONE}]+|[^\w\s])\s*")
"""A word or a mark, with the space around it."""

GONE, NEW = "del", "ins"

MOST = 4_000_000
"""Pairs of words up to which the longest common parts are looked for; a longer text is compared in one pass."""

Piece = tuple[str, str]
"""What became of a piece of text ("del", "ins" or "" for what stays), and the piece itself."""


def marked(before: str, after: str, longest: int) -> Html:
    """Return a text with what it has lost and won since `before`; pieces of more than `longest` characters are cut.

    >>> marked("Be very kind.", "Be kind.", 99)
    'Be <del>very </del>kind.'
    """
    parts = [tag(kind, text(piece, longest)) if kind else text(piece, longest) for kind, piece in pieces(before, after)]
    return Html("".join(parts))


def pieces(before: str, after: str) -> list[Piece]:
    """Return both texts in one: the pieces that are not "ins" hold the words of `before`, those not "del" are `after`.

    >>> pieces("one two three", "one 2 three")
    [('', 'one '), ('del', 'two '), ('ins', '2 '), ('', 'three')]
    >>> pieces("gone", ""), pieces("same", "same")
    ([('del', 'gone')], [('', 'same')])
    """
    if before == after:
        return [("", after)] if after else []
    old, new = _words(before), _words(after)
    spans = _spans(old, new)
    if spans[-1][0] == GONE and new and not new[-1][-1].isspace():
        new[-1] += " "  # else the last word that stays runs into those that are gone
    found = ((kind, old[a:b] if kind == GONE else new[a:b]) for kind, a, b in spans)
    groups = groupby(found, key=itemgetter(0))
    return [(kind, "".join(word for _, words in parts for word in words)) for kind, parts in groups]


Span = tuple[str, int, int]
"""What became of some words, and where they begin and end: of the old ones if they are gone, else of the new."""


def _spans(old: Sequence[str], new: Sequence[str]) -> list[Span]:
    """Return what became of all words, which are the same whatever space is around them."""
    words = [[word.strip() for word in some] for some in (old, new)]
    compare = _by_parts if len(old) * len(new) <= MOST else _in_one_pass
    return [span for span in compare(*words) if span[1] < span[2]]


def _words(said: str) -> list[str]:
    return WORDS.findall(said) or [said] * bool(said)


def _by_parts(old: Sequence[str], new: Sequence[str]) -> Iterator[Span]:
    for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "", c, d
        else:
            yield GONE, a, b
            yield NEW, c, d


def _in_one_pass(old: Sequence[str], new: Sequence[str]) -> Iterator[Span]:
    """Yield the spans of a text of which words were taken out; any other is told as another text."""
    left = iter(old)
    if not all(word in left for word in new):
        yield GONE, 0, len(old)
        yield NEW, 0, len(new)
        return
    place = 0
    for number, word in enumerate(old):
        if place < len(new) and word == new[place]:
            yield "", place, place + 1
            place += 1
        else:
            yield GONE, number, number + 1
