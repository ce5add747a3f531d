"""What recurs in a message and what changes in it, to the word: texts, and the values between each and the next."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median

from pilocal.logs.alignment import LEAST, Aligned, align
from pilocal.logs.kinds import CALENDAR, is_data, is_dated
from pilocal.logs.units import SHARE, Unit, most_have, shared, word_count

FEW = 10
"""Values up to which what changes may be wordings of a prompt."""

PASSAGE = 12
"""Words of a value, in the middle of all, from which a few words that all have in common are chance."""

BRIEF = 4
"""Words of the longest values that one or two words can part."""

LABEL = re.compile(r"[ \t]*(?:[-*#>\u2022]+[ \t]*)?[*_]*[^\s:\uff1a][^:\uff1a\n]{0,40}(?::[*_]*(?=\s|$)|\uff1a)")
"""What begins a line and names the rest of it."""

TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
    r"(?:[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|(?<=\w)['\u2019.:/@+-]+(?=\w))*|[^\w\s]"
)
"""A word, with marks inside it as 2026-05-01 has them; a character of Chinese, Japanese and Korean; a mark."""

LETTER = r"[A-Za-z\u00c0-\u024f\d]"

WEAK = rf"(?:\d(?:[\d.:/-]*\d)?(?:st|nd|rd|th|t|z)?|{CALENDAR})(?!{LETTER})"
"""What belongs to the date beside it, although it was the same in all requests."""

LONGEST_DATE = 200
"""Characters of a text that may be parts of the date beside it."""

BEFORE = re.compile(rf"(?<!{LETTER})(?:{WEAK}[ \t,/-]*)+$", re.IGNORECASE)
BEHIND = re.compile(rf"(?:[ \t]*[,/-]?[ \t]*{WEAK}|\.[ \t]*(?:\d{{4}}|{CALENDAR})(?!{LETTER}))+", re.IGNORECASE)


MARKS = string.punctuation + string.whitespace


@dataclass(slots=True)
class Skeleton:
    """Texts that recur, one more than the places between them."""

    texts: list[str]
    """As they stand, white space included."""
    values: list[list[str]]
    """What rows hold in each place."""
    query: int | None = None
    """The place of the query; None where the message has none."""
    beside: set[int] = field(default_factory=set)
    """The places that are several side by side, since no word parts them."""

    @property
    def slots(self) -> list[int]:
        """The places that change and are not the query."""
        return [number for number in range(len(self.values)) if number != self.query]

    def put(self, number: int, other: Skeleton) -> None:
        """Put a finer skeleton into a place; its query, if it has one, is then that of the whole."""
        first, *inner, last = other.texts
        self.texts[number] += first
        self.texts[number + 1 : number + 1] = inner
        self.texts[number + len(other.values)] = last + self.texts[number + len(other.values)]
        self.values[number : number + 1] = other.values
        more = len(other.values) - 1
        self.beside = {one + (more if one > number else 0) for one in self.beside} | {
            one + number for one in other.beside
        }
        if other.query is not None:
            self.query = number + other.query
        elif self.query is not None and self.query > number:
            self.query += more

    def refine(self) -> None:
        """Narrow every slot to the words that change."""
        for number in reversed(self.slots):
            self.put(number, refined(self.values[number]))
        self.tidy()

    def tidy(self) -> None:
        """Join the slots that nothing parts, take in what belongs to a date, and keep braces off the slots' own."""
        for number in self.slots:
            self._take_in_dates(number)
        for number in reversed(self.slots[:-1]):
            if number + 1 != self.query and _parts_nothing(self.texts[number + 1]):
                self.join(number)
                self.beside.add(number)
        for number in self.slots:
            self._take_in_braces(number)

    def join(self, number: int) -> None:
        """Make one place of two."""
        between = self.texts.pop(number + 1)
        one, other = self.values[number : number + 2]
        self.values[number : number + 2] = [[a + between + b for a, b in zip(one, other, strict=False)]]
        self.beside = {place - (place > number) for place in self.beside}
        if self.query is not None and self.query > number:
            self.query -= 1

    def _take_in_dates(self, number: int) -> None:
        """Add the parts of a date that were the same in all requests, such as the year, to those that changed."""
        if not most_have(self.values[number], is_dated):
            return
        before = BEFORE.search(self.texts[number][-LONGEST_DATE:])
        behind = BEHIND.match(self.texts[number + 1][:LONGEST_DATE])
        self.take_in(number, before[0] if before else "", behind[0] if behind else "")

    def _take_in_braces(self, number: int) -> None:
        before, behind = re.search(r"[{\\]+$", self.texts[number]), re.match(r"\}+", self.texts[number + 1])
        self.take_in(number, before[0] if before else "", behind[0] if behind else "")

    def take_in(self, number: int, before: str, behind: str) -> None:
        """Add to a place what the text before it ends with, and what the text behind it begins with."""
        if before or behind:
            self.texts[number] = self.texts[number].removesuffix(before)
            self.texts[number + 1] = self.texts[number + 1].removeprefix(behind)
            self.values[number] = [before + value + behind for value in self.values[number]]


def _parts_nothing(text: str) -> bool:
    """Tell whether a text between two slots has no word, nor a line of its own."""
    return not re.search(r"\w", text) and not ("\n" in text and text.strip())


def skeleton_of(aligned: Aligned, rows: Collection[int], query: int | None = None) -> Skeleton:
    """Return the skeleton of aligned texts, with the values of some rows; `query` is the hole of the query."""
    found = Skeleton([""], [])
    for hole, is_open in enumerate(aligned.open):
        before, behind = aligned.spaces[hole]
        found.texts[-1] += before
        if is_open:
            if hole == query:
                found.query = len(found.values)
            found.values.append([aligned.held[row][hole] for row in rows])
            parted = behind or (before if 0 < hole < len(aligned.fixed) and not any(found.values[-1]) else "")
            found.texts.append(parted)
        else:
            found.texts[-1] += behind
        found.texts[-1] += aligned.fixed[hole] if hole < len(aligned.fixed) else ""
    return found


def are_few(values: Counter[str]) -> bool:
    """Tell whether values are so few that they may be wordings of a prompt; more are data."""
    return len(values) <= FEW and 3 * len(values) <= values.total()


def refined(values: Sequence[str]) -> Skeleton:
    """Return what some values have in common, to the word, and what changes in each."""
    whole = Skeleton(["", ""], [list(values)])
    if not most_have(values, bool):
        return whole
    found = aligned_by(values, labelled) or _by_lines(values) or whole
    for number in reversed(range(len(found.values))):
        if most_have(found.values[number], lambda value: "\n" not in value):
            finer = _by_words(found.values[number])
            if all(map(is_data, finer.values)) or not are_few(Counter(found.values[number])):
                found.put(number, finer)
    found.tidy()
    return found


def _by_lines(values: Sequence[str]) -> Skeleton | None:
    """Return values of as many lines each, line by line; None unless words of one of them recur, and few are long."""
    lines = [value.split("\n") for value in values]
    ((count, times),) = Counter(map(len, lines)).most_common(1)
    columns = [list(column) for column in zip(*(each for each in lines if len(each) == count), strict=True)]
    if count < 2 or times < SHARE * len(values) or any(median(map(word_count, each)) > PASSAGE for each in columns):
        return None
    return Skeleton(["", *["\n"] * (count - 1), ""], columns)


def aligned_by(values: Sequence[str], cut: Callable[[str], tuple[Unit, ...]]) -> Skeleton | None:
    """Return what nearly all values have in common, of the units into which they are cut; None where it is nothing."""
    aligned = align(values, cut)
    if not aligned.fixed or not any(aligned.open) or len(aligned.held) < SHARE * len(values):
        return None
    return skeleton_of(aligned, aligned.held)


def _by_words(values: Sequence[str]) -> Skeleton:
    """Return the words that all values of a line have in common, without those that they have by chance."""
    found = aligned_by(values, tokens) or _ends(values)
    if median(map(word_count, values)) > PASSAGE:
        _take_in_chance(found)
    for number in reversed(range(len(found.values) - 1)):
        between = found.texts[number + 1]
        brief = all(word_count(value) <= BRIEF for some in found.values[number : number + 2] for value in some)
        if re.search(r"\w", between) and word_count(between) < LEAST and not brief:
            found.join(number)
    return found


def _take_in_chance(found: Skeleton) -> None:
    """Leave a few words that long values begin or end with to the values."""
    before, behind = found.texts[0], found.texts[-1]
    found.take_in(0, "" if _says_something(before) else before, "")
    found.take_in(len(found.values) - 1, "", "" if _says_something(behind) else behind)


def _says_something(text: str) -> bool:
    return word_count(text) >= LEAST or text.rstrip().endswith((":", "\uff1a"))


def _ends(values: Sequence[str]) -> Skeleton:
    """Return the whole words that all values begin and end with."""
    begins, ends = alike(values)
    return Skeleton([begins, ends], [[value[len(begins) : len(value) - len(ends)] for value in values]])


def alike(values: Sequence[str]) -> tuple[str, str]:
    """Return the whole words that all values begin and end with."""
    begins = shared(values, 1.0)
    begins = begins[: begins.rfind(" ") + 1]
    ends = shared([value[len(begins) :][::-1] for value in values], 1.0)[::-1]
    return begins, ends[ends.find(" ") :] if " " in ends else ends[len(ends.rstrip(MARKS)) :]


@lru_cache(maxsize=4096)
def labelled(text: str) -> tuple[Unit, ...]:
    r"""Return the lines of a text, and what names the rest of a line as a unit of its own.

    >>> [unit.key for unit in labelled("User: Ann Lee\n\nwho speaks German")]
    ['User:', 'Ann Lee', 'who speaks German']
    """
    found = list[Unit]()
    start = 0
    for line in text.split("\n"):
        label = LABEL.match(line)
        cut = label.end() if label else 0
        for begin, end in ((start, start + cut), (start + cut, start + len(line))):
            part = text[begin:end]
            if part.strip():
                first = begin + len(part) - len(part.lstrip())
                found.append(Unit(" ".join(part.split()), first, first + len(part.strip())))
        start += len(line) + 1
    return tuple(found)


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Unit, ...]:
    """Return the words and marks of a text."""
    return tuple(Unit(token[0], token.start(), token.end()) for token in TOKEN.finditer(text))
