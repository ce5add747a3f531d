"""The syntax of GBNF, llama.cpp's language for grammars, read as llama.cpp reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn

MAX_BYTES = 131_072
"""Bytes of a grammar's text."""

MAX_ELEMENTS = 50_000
"""Characters and references of a grammar once its repetitions are written out."""

MAX_SETS = 4_000
"""Sets of characters that differ, a character of a literal among them."""

MAX_REPEATED = 2_000
"""The highest bound of a repetition; llama.cpp drops a higher one silently."""

MAX_DEPTH = 50
"""Groups within groups; llama.cpp's parser calls itself for each."""

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: first and last code point of each run, in order."""

Body = tuple[int, ...]
"""What an alternative writes: rules by number, sets of characters as ~number."""

_CHARACTERS: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))
_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]+|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_NUMBER = re.compile(r"[0-9]+")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX = {"x": re.compile("[0-9a-fA-F]{2}"), "u": re.compile("[0-9a-fA-F]{4}"), "U": re.compile("[0-9a-fA-F]{8}")}


class GrammarError(ValueError):
    """A grammar that is not taken; `str()` is one line: where in the text, and what is wrong."""


def normalised(ranges: Iterable[tuple[int, int]], *, negated: bool = False) -> Ranges:
    """Return a set of characters in order and without overlaps, only of characters that a text may hold.

    >>> normalised([(98, 99), (97, 98)])
    ((97, 99),)
    """
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    if negated:
        found = list(
            zip([0, *(high + 1 for _, high in found)], [*(low - 1 for low, _ in found), 0x10FFFF], strict=True)
        )
    return tuple(filter(_is_run, (_common(run, allowed) for run in found for allowed in _CHARACTERS)))


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), min(one[1], other[1])


def _is_run(run: tuple[int, int]) -> bool:
    return run[0] <= run[1]


def check_text(text: str) -> None:
    """Raise GrammarError for a text that is too long, empty, or not text."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise GrammarError(f"line {line}: half a surrogate pair is no character") from None
    if size > MAX_BYTES:
        raise GrammarError(f"the grammar has {size} bytes; at most {MAX_BYTES} are taken")
    if "\0" in text:
        raise GrammarError(f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL ends the text for llama.cpp")
    if not text.strip():
        raise GrammarError("the grammar is empty")


@dataclass(slots=True)
class Reader:
    """Reads a text from its beginning to its end; rules are numbered in llama.cpp's order, which its limits count."""

    text: str
    at: int = 0
    line: int = 1
    counted: int = 0
    """Up to where `line` is counted."""
    rule: str = ""
    elements: int = 0
    symbols: dict[str, int] = field(default_factory=dict)
    bodies: dict[int, list[Body]] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)
    """The line where each rule is first named."""
    owners: dict[int, str] = field(default_factory=dict)
    """The rule in the text that each generated rule is from."""
    loops: set[int] = field(default_factory=set)
    sets: dict[Ranges, int] = field(default_factory=dict)

    def read(self) -> None:
        """Read all rules; raises GrammarError."""
        self._skip(lines=True)
        while self.at < len(self.text):
            self._read_rule()

    def place(self, index: int) -> str:
        """Return where a rule is, as errors say it."""
        name = self.owners.get(index) or next(name for name, number in self.symbols.items() if number == index)
        return f"line {self.used[index]}, rule `{name}`"

    def _read_rule(self) -> None:
        self.rule = ""
        found = _NAME.match(self.text, self.at)
        if not found:
            self._fail("a rule's name is expected, of letters, digits and -")
        self.rule = found[0]
        index = self._symbol(self.rule)
        if index in self.bodies:
            self._fail("it is defined twice")
        self.used[index] = self._line()
        self.at = found.end()
        self._skip()
        self._expect("::=")
        self._skip(lines=True)
        self.bodies[index] = self._alternatives(0)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            self._fail("the rule cannot go on like this")
        self._skip(lines=True)

    def _alternatives(self, depth: int) -> list[Body]:
        bodies = [self._sequence(depth)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self._skip(lines=True)
            bodies.append(self._sequence(depth))
        return bodies

    def _sequence(self, depth: int) -> Body:
        body: list[int] = []
        begin, weight = 0, 1
        while self.at < len(self.text):
            character = self.text[self.at]
            if character in "*+?{":
                low, high = self._times(lines=depth > 0)
                weight = self._repeat(body, begin, weight, low, high)
            elif character in '"[.(' or _NAME.match(character):
                begin, before = len(body), len(self.symbols)
                body += self._element(character, depth)
                weight = max(1, len(self.symbols) - before) if character == "(" else 1
                self._skip(lines=depth > 0)
            elif character in "<!":
                self._fail("tokens such as <[1]> are not taken here: an answer is text")
            else:
                break
        return tuple(body)

    def _element(self, character: str, depth: int) -> list[int]:
        if character == '"':
            return self._literal()
        if character == "[":
            return [self._class()]
        if character == "(":
            return [self._group(depth)]
        if character == ".":
            self.at += 1
            return [self._set(_CHARACTERS)]
        found = _NAME.match(self.text, self.at)
        assert found
        index = self._symbol(found[0])
        self.at = found.end()
        self._grow(1)
        return [index]

    def _literal(self) -> list[int]:
        self.at += 1
        found = []
        while not self.text.startswith('"', self.at):
            code = self._character()
            found.append(self._set(((code, code),)))
        self.at += 1
        return found

    def _class(self) -> int:
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges = []
        while not self.text.startswith("]", self.at):
            low = high = self._character()
            if self.text.startswith("-", self.at) and not self.text.startswith("]", self.at + 1):
                self.at += 1
                high = self._character()
            if high < low:
                self._fail("a range of characters ends before it begins")
            ranges.append((low, high))
        if not ranges:
            self._fail("a set of characters is empty; write \\] for the bracket itself")
        self.at += 1
        return self._set(tuple(ranges), negated=negated)

    def _group(self, depth: int) -> int:
        if depth == MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} groups are within each other")
        self.at += 1
        self._skip(lines=True)
        index = self._generate()
        self.bodies[index] = self._alternatives(depth + 1)
        self._expect(")")
        self._grow(1)
        return index

    def _times(self, *, lines: bool) -> tuple[int, int | None]:
        """Read a repetition; return its bounds."""
        character = self.text[self.at]
        self.at += 1
        self._skip(lines=lines)
        if character != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        low = self._number()
        if low is None:
            self._fail("a number is expected after {")
        self._skip(lines=lines)
        high: int | None = low
        if self.text.startswith(",", self.at):
            self.at += 1
            self._skip(lines=lines)
            high = self._number()
            self._skip(lines=lines)
        self._expect("}")
        self._skip(lines=lines)
        if max(low, high or 0) > MAX_REPEATED:
            self._fail(f"a repetition is over {MAX_REPEATED}")
        if high is not None and high < low:
            self._fail(f"a repetition of at least {low} and at most {high}")
        return low, high

    def _repeat(self, body: list[int], begin: int, weight: int, low: int, high: int | None) -> int:
        """Repeat what `body` holds from `begin` on, as llama.cpp does; return how many rules that weighs there."""
        if begin == len(body):
            self._fail("there is nothing to repeat before a repetition")
        times = high or low or 1
        if weight * times > MAX_REPEATED:
            self._fail(f"repetitions within each other make more than {MAX_REPEATED} rules")
        once = tuple(body[begin:])
        optional = 1 if high is None else high - low
        self._grow((len(once) + 1) * (low + optional))
        if low:
            body += once * (low - 1)
        else:
            del body[begin:]
        last: Body = ()
        for _ in range(optional):
            index = self._generate()
            if high is None:
                self.loops.add(index)
                last = (index,)
            self.bodies[index] = [once + last, ()]
            last = (index,)
        body += last
        return weight * times

    def _character(self) -> int:
        if self.at >= len(self.text):
            self._fail("the text ends within quotes or brackets")
        character = self.text[self.at]
        self.at += 1
        if character != "\\":
            return ord(character)
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in _HEX:
            digits = _HEX[kind].match(self.text, self.at)
            if digits:
                self.at = digits.end()
                return int(digits[0], 16)
        elif kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        self.at -= 2
        self._fail(f"no such escape: {self.text[self.at : self.at + 2]!a}")

    def _set(self, ranges: Ranges, *, negated: bool = False) -> int:
        self._grow(1)
        if ranges in self.sets and not negated:
            return ~self.sets[ranges]
        characters = normalised(ranges, negated=negated)
        if not characters:
            self._fail("no character is in a set or literal")
        if len(self.sets) == MAX_SETS:
            self._fail(f"more than {MAX_SETS} characters and sets of characters differ")
        return ~self.sets.setdefault(characters, len(self.sets))

    def _number(self) -> int | None:
        found = _NUMBER.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return int(found[0]) if len(found[0]) < 20 else 10**20

    def _symbol(self, name: str) -> int:
        if name not in self.symbols:
            self.used[len(self.symbols)] = self._line()
        return self.symbols.setdefault(name, len(self.symbols))

    def _generate(self) -> int:
        index = self._symbol(f"{self.rule}_{len(self.symbols)}")
        self.owners[index] = self.rule
        return index

    def _grow(self, elements: int) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            self._fail(f"with its repetitions written out, the grammar has more than {MAX_ELEMENTS} elements")

    def _skip(self, *, lines: bool = False) -> None:
        found = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.at)
        assert found
        self.at = found.end()

    def _expect(self, mark: str) -> None:
        if not self.text.startswith(mark, self.at):
            self._fail(f"{mark} is expected")
        self.at += len(mark)

    def _line(self) -> int:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = max(self.counted, self.at)
        return self.line

    def _fail(self, what: str) -> NoReturn:
        got = self.text[self.at : self.at + 12]
        rule = f", rule `{self.rule}`" if self.rule else ""
        raise GrammarError(f"line {self._line()}{rule}: {what}" + (f"; got {got!a}" if got else ""))
