r"""Where a text may be cut that is too long to be removed as a whole, from the coarsest borders to the finest.

The borders are JSON members and lines of code, then sentences, clauses and spaces, and at last characters. None lies
inside a grapheme cluster, an escape such as \n, a tag, a placeholder, inline code, or a word of a script that writes
spaces between words.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

from pilocal.compress.outline import FENCE
from pilocal.compress.protect import ATOM, Place

Part = tuple[Place, ...]
"""The places that go together: one, or the two ends of a shell (brackets, quotation marks, the marks of a fence)."""

MOST = 16
"""A text is cut into at most this many parts at a time, so that a long one costs few counts of its tokens."""

LONGEST_WORD = 30
"""A run of letters that is longer is not a word."""

STOPS = (
    "\u3002\uff0e\uff61\uff01\uff1f"  # Chinese and Japanese
    "\u2026\u203c\u203d\u2047-\u2049\u037e\u0589"  # ellipsis, doubled marks, Greek, Armenian
    "\u061f\u06d4\u0700-\u0702\u0964\u0965"  # Arabic, Urdu, Syriac, Devanagari and its neighbours
    "\u104b\u1362\u1367\u1368\u17d4\u17d5\u1803\u1809\u0f0d-\u0f12"  # Burmese, Ethiopic, Khmer, Mongolian, Tibetan
)
"""What ends a sentence without a space after it."""

COMMAS = (
    ",;:|/\t\u2014\u00b7\u0387"  # ASCII, dash, middle dots
    "\u3001\uff0c\uff64\uff1b\uff1a\u30fb"  # Chinese and Japanese
    "\u060c\u061b\u1361\u1363-\u1366\u104a\u0f0b\u1802\u1808"  # Arabic, Ethiopic, Burmese, Tibetan, Mongolian
)
"""What ends a clause."""

CLOSERS = "\"')\\]\u2019\u201d\u00bb\u300d\u300f\uff09\u3011\u300b\u3009\uff3d"
"""What belongs to the sentence before it."""

SENTENCE = re.compile(rf"(?:[{STOPS}]|[.!?](?![A-Za-z0-9]))+[{CLOSERS}]*(?:</[^<>]+>)*\s*")
CLAUSE = re.compile(rf"[{COMMAS}]+\s*")
SPACE = re.compile(r"\s+")

WHOLE = re.compile(
    r"(?:\\u[0-9A-Fa-f]{4})+|\\."  # escapes
    r"|</?[^\W\d][^<>\n]{0,200}>"  # tags
    r"|&#?\w{1,31};"  # entities
)
"""What is never cut, besides inline code and placeholders."""

UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"  # Thai to Tai Tham
    "\u3000-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff65-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""Scripts that write no spaces between words."""

KEY = re.compile(r'\s*,?\s*(?:"(?:[^"\\]|\\.)*"\s*:\s*)?')
"""What stands before a JSON value: a comma, a key."""

END = re.compile(r"\s*,?\s*\Z")

ZWJ = "\u200d"
EXTENDERS = re.compile("[\u200c\u200d\u0e33\u0eb3\uff9e\uff9f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
"""What belongs to the character before it, besides the marks (categories M): joiners, skin tones, tags."""

PREPENDED = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd]")
"""What belongs to the character after it."""

LEADS, FOLLOWERS = re.compile("[\u1100-\u115f\ua960-\ua97f]"), re.compile("[\u1160-\u11ff\ud7b0-\ud7ff]")
SYLLABLES = re.compile("[\u1100-\u115f\ua960-\ua97f\uac00-\ud7a3]")
"""Hangul jamo that begin a syllable, those that go on with one, and what may stand after one that begins it."""

FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
"""The letters that make a flag in pairs."""


def structure(text: str, closed: Sequence[Place]) -> list[Part]:
    """Return the parts of a JSON text or of lines of code, in order; nothing if the text has no such structure.

    If what encloses the parts is in the text, too, it comes first. No part begins or ends inside a `closed` place.

    >>> [[text[a:b] for a, b in part] for text in ['"k":[1,{"a":2}],'] for part in structure(text, [])]
    [['"k":[', '],'], ['1'], [',{"a":2}']]
    """
    borders, has_shell = _members(text) or _lines(text)
    places = _between(borders, text, closed)
    if not has_shell:
        return [(place,) for place in _grouped(places)] if len(places) > 1 else []
    return [(places[0], places[-1]), *((place,) for place in _grouped(places[1:-1]))] if len(places) > 2 else []


def pieces(text: str, closed: Sequence[Place]) -> list[Place]:
    """Return the sentences of a text, or what is next finer if it is a single one; the whole text if nothing is.

    No piece begins or ends inside a `closed` place.

    >>> [text[a:b] for text in ["one\u3002two \u3002 3."] for a, b in pieces(text, [])]
    ['one\u3002', 'two \u3002 ', '3.']
    """
    whole = [*closed, *(match.span() for pattern in (ATOM, WHOLE) for match in pattern.finditer(text))]
    for mark in (SENTENCE, CLAUSE, SPACE):
        places = _between([match.end() for match in mark.finditer(text)], text, whole)
        if len(places) > 1:
            return _grouped(places)
    return _grouped(_between(range(1, len(text)), text, [*whole, *_words(text)]))


def is_border(text: str, at: int) -> bool:
    """Tell whether no grapheme cluster goes on from before `at` to after it."""
    before, after = text[at - 1], text[at]
    if before in FLAGS and after in FLAGS:
        return (at - len(text[:at].rstrip(FLAGS))) % 2 == 0
    if LEADS.match(before) and SYLLABLES.match(after):
        return False
    goes_on = before == ZWJ or PREPENDED.match(before) or unicodedata.combining(before) == 9  # 9: viramas
    is_tail = unicodedata.category(after)[0] == "M" or EXTENDERS.match(after) or FOLLOWERS.match(after)
    return not (goes_on or is_tail or before + after == "\r\n")


def _between(borders: Iterable[int], text: str, closed: Sequence[Place]) -> list[Place]:
    """Return the places from border to border, without the borders that are none."""
    inside = {at for start, end in closed for at in range(start + 1, end)}
    first = len(text) - len(text.lstrip()) + 1  # spaces at the start belong to what follows
    allowed = {at for at in borders if first <= at < len(text) and at not in inside and is_border(text, at)}
    return list(pairwise([0, *sorted(allowed), len(text)]))


def _grouped(places: Sequence[Place]) -> list[Place]:
    """Return neighbours as one, until there are at most MOST."""
    size = -(-len(places) // MOST)
    groups = [places[start : start + size] for start in range(0, len(places), size)]
    return [(group[0][0], group[-1][1]) for group in groups]


def _members(text: str) -> tuple[list[int], bool] | None:
    """Return the ends of JSON members, or of those inside a single one with its brackets; None if there are none.

    Also returns whether the brackets, or the quotation marks of a text, enclose the rest.
    """
    values = _values(text)
    if len(values) > 1:
        return [end for _, end in values[:-1]], False
    if not values or text[values[0][0]] not in '{["':
        return None
    (start, end) = values[0]
    inner = [] if text[start] == '"' else _values(text[start + 1 : end - 1])
    return [start + 1, *(start + 1 + place for _, place in inner[:-1]), end - 1], True


def _values(text: str) -> list[Place]:
    """Return where the values of JSON members begin and end; nothing if the text holds anything else."""
    found: list[Place] = []
    decoder, end = json.JSONDecoder(), 0
    while not END.match(text, end):
        key = KEY.match(text, end)
        try:
            begin = key.end() if key else end
            end = decoder.raw_decode(text, begin)[1]
        except (ValueError, RecursionError):
            return []
        found.append((begin, end))
    return found


def _lines(text: str) -> tuple[list[int], bool]:
    """Return where all lines but the first begin, and whether the first and the last are the marks of a fence."""
    return [match.start() for match in re.finditer("\n", text)], bool(FENCE.match(text))


def _words(text: str) -> list[Place]:
    """Return the words of scripts that write spaces between words."""
    kinds = "".join("w" if _is_letter(char) else " " for char in text)
    places = [match.span() for match in re.finditer("w+", kinds)]
    return [(start, end) for start, end in places if end - start <= LONGEST_WORD]


def _is_letter(char: str) -> bool:
    is_letter = char in "'\u2019_-" or unicodedata.category(char)[0] in "LMN"
    return is_letter and not UNSPACED.match(char)
