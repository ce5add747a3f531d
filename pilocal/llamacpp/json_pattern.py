"""Regular expressions of JSON schemas as GBNF: what they have in common in ECMAScript and Python."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from pilocal.llamacpp.gbnf import MAX_REPEATED, Ranges, normalised

MAX_PATTERN = 1_000
"""Characters of a regular expression."""

MAX_GROUPS = 20
"""Groups within groups."""

_DIGIT = ((0x30, 0x39),)
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE = ((0x09, 0x0D), (0x20, 0x20))
_SETS: dict[str, Ranges] = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_ASCII = (0x20, 0x7E)
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")
_TIMES = re.compile(r"\{([0-9]{1,6})(?:(,)([0-9]{1,6})?)?\}|[*+?]")
_ESCAPED = {0x22: '\\"', 0x5C: "\\\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_NOT_PLAIN = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))


class PatternError(ValueError):
    """A regular expression that is not taken; `str()` says what of it."""


def pattern_grammar(pattern: str, any_character: str) -> str:
    """Return GBNF for what a JSON string holds between its quotes so that a regular expression is found in it.

    `any_character` names a rule for one character. Where dialects disagree, only what all take is written: a negated
    class that names digits, words or spaces is limited to ASCII. Raises PatternError for look-around, back-references,
    borders of words, named groups and options, anchors within, and endless repetitions of what may be empty.

    >>> pattern_grammar("^[A-Z]{2}-?$", "char")
    '([A-Z]){2,2} ("-"){0,1}'
    """
    if len(pattern) > MAX_PATTERN:
        raise PatternError(f"more than {MAX_PATTERN} characters")
    return _Pattern(pattern, any_character).read()


def json_characters(characters: Iterable[tuple[int, int]]) -> str:
    """Return GBNF for one of these characters as a JSON string writes it; empty where none can be written plainly."""
    ranges = normalised(characters)
    outside = normalised([*normalised(ranges, negated=True), *_NOT_PLAIN])
    plain = normalised(outside, negated=True)
    short = "".join(text for code, text in _ESCAPED.items() if any(low <= code <= high for low, high in ranges))
    found = []
    if plain:
        found.append("[" + "".join(_run(low, high) for low, high in plain) + "]")
    if short:
        found.append(f'"\\\\" [{short}]')
    return " | ".join(found)


def _run(low: int, high: int) -> str:
    return _code(low) if low == high else f"{_code(low)}-{_code(high)}"


def _code(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02X}" if code < 0x100 else f"\\U{code:08X}"


def _times(found: re.Match[str]) -> tuple[int, int | None]:
    if found[0] in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[0]]
    low = int(found[1])
    return low, int(found[3]) if found[3] else None if found[2] else low


def _ascii_without(characters: Ranges) -> Ranges:
    """Return the printable ASCII characters that are not in a set."""
    outside = [(0, _ASCII[0] - 1), (_ASCII[1] + 1, 0x10FFFF)]
    return normalised([*characters, *outside], negated=True)


@dataclass(slots=True)
class _Pattern:
    """Reads an expression from its beginning to its end; each part is its GBNF, and whether it can be empty."""

    text: str
    any_character: str
    at: int = 0

    def read(self) -> str:
        branches = [self._branch()]
        while self._take("|"):
            branches.append(self._branch())
        if self.at < len(self.text):
            self._fail("it cannot go on like this")
        return branches[0] if len(branches) == 1 else " | ".join(f"({branch})" for branch in branches)

    def _branch(self) -> str:
        """Read an alternative of the whole expression, which is found anywhere unless it is anchored."""
        anything = f"{self.any_character}*"
        before = [] if self._take("^") else [anything]
        found, _ = self._sequence(0)
        after = [] if self._take("$") else [anything]
        return " ".join([*before, *([found] if found else []), *after]) or '""'

    def _sequence(self, depth: int) -> tuple[str, bool]:
        parts, empty = [], True
        while self.at < len(self.text) and self.text[self.at] not in "|)$":
            part, nullable = self._repeated(*self._atom(depth))
            parts.append(part)
            empty = empty and nullable
        return " ".join(parts), empty

    def _atom(self, depth: int) -> tuple[str, bool]:
        character = self.text[self.at]
        if character in "^*+?{}]":
            self._fail("it is not taken here")
        self.at += 1
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._written(self._class()), False
        if character == ".":
            return self._written(normalised(_LINE_ENDS, negated=True)), False
        if character == "\\":
            characters, _ = self._escape()
            return self._written(characters), False
        return self._written([(ord(character), ord(character))]), False

    def _group(self, depth: int) -> tuple[str, bool]:
        if depth == MAX_GROUPS:
            self._fail(f"more than {MAX_GROUPS} groups within each other")
        if self.text.startswith("?", self.at) and not self._take("?:"):
            self._fail("look-around, names and options are not taken")
        branches = [self._sequence(depth + 1)]
        while self._take("|"):
            branches.append(self._sequence(depth + 1))
        if not self._take(")"):
            self._fail("a group is not closed")
        return "(" + " | ".join(text or '""' for text, _ in branches) + ")", any(empty for _, empty in branches)

    def _repeated(self, atom: str, nullable: bool) -> tuple[str, bool]:
        found = _TIMES.match(self.text, self.at)
        if not found:
            return atom, nullable
        low, high = _times(found)
        if max(low, high or 0) > MAX_REPEATED or (high is not None and high < low):
            self._fail(f"a repetition goes up, to {MAX_REPEATED} at most")
        if nullable and high is None:
            self._fail("an endless repetition repeats what can be empty")
        self.at = found.end()
        self._take("?")  # reluctant ones find the same texts
        if _TIMES.match(self.text, self.at):
            self._fail("a repetition is repeated")
        if high == 0:
            return '""', True
        return f"({atom}){{{low},{'' if high is None else high}}}", nullable or not low

    def _class(self) -> Ranges:
        begin = self.at
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        ascii_only = False
        while not self.text.startswith("]", self.at):
            characters, several = self._member()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                others, more = self._member()
                if several or more or others[0][0] < characters[0][0]:
                    self._fail("a range of characters is from one to a later one")
                characters = ((characters[0][0], others[0][0]),)
            ascii_only = ascii_only or several
            ranges += characters
        if self.at == begin + negated:
            self._fail("a class of characters is empty")
        self.at += 1
        if not negated:
            return normalised(ranges)
        return _ascii_without(tuple(ranges)) if ascii_only else normalised(ranges, negated=True)

    def _member(self) -> tuple[Ranges, bool]:
        """Read a character of a class, or a set; return it, and whether it is a set."""
        if self.at >= len(self.text):
            self._fail("a class of characters is not closed")
        character = self.text[self.at]
        self.at += 1
        if character == "\\":
            return self._escape(within=True)
        if character == "[":
            self.at -= 1
            self._fail("write \\[ for the bracket itself")
        return ((ord(character), ord(character)),), False

    def _escape(self, *, within: bool = False) -> tuple[Ranges, bool]:
        kind = self.text[self.at : self.at + 1]
        digits = _HEX.match(self.text, self.at)
        self.at += digits.end() - digits.start() if digits else 1
        if kind in _SETS:
            return _SETS[kind], True
        if kind.lower() in _SETS and not within:
            return _ascii_without(_SETS[kind.lower()]), True
        code = int(digits[1] or digits[2], 16) if digits else _CONTROLS.get(kind, -1)
        if kind.isascii() and kind and not kind.isalnum():
            code = ord(kind)
        if code < 0:
            self.at -= 2
            self._fail("this escape is not taken")
        return ((code, code),), False

    def _written(self, characters: Iterable[tuple[int, int]]) -> str:
        found = json_characters(characters)
        if not found:
            self._fail("no such character can stand in a JSON string")
        single = re.fullmatch(r"\[([A-Za-z0-9]|\\x[0-9A-F]{2})\]", found)
        if single:
            return f'"{single[1]}"' if len(single[1]) == 1 else f'"{chr(int(single[1][2:], 16))}"'
        return found if found.startswith("[") and " | " not in found else f"({found})"

    def _take(self, mark: str) -> bool:
        taken = self.text.startswith(mark, self.at)
        self.at += len(mark) * taken
        return taken

    def _fail(self, what: str) -> NoReturn:
        raise PatternError(f"{what}; got {self.text[self.at : self.at + 8]!a} at {self.at}")
