"""One JSON object, read a character at a time: where its values are, and the first character that cannot be JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

BLANKS = " \t\n\r"
"""White space in JSON."""
DEEPEST = 64
"""Levels of objects and lists; Python and Jinja recurse over them."""
DIGITS = "0123456789"
LITERALS: Mapping[str, str] = {"t": "true", "f": "false", "n": "null"}
NUMBERS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "minus": (("0", "zero"), ("123456789", "whole")),
    "zero": ((".", "point"), ("eE", "power")),
    "whole": ((DIGITS, "whole"), (".", "point"), ("eE", "power")),
    "point": ((DIGITS, "share"),),
    "share": ((DIGITS, "share"), ("eE", "power")),
    "power": ((DIGITS, "digits"), ("+-", "sign")),
    "sign": ((DIGITS, "digits"),),
    "digits": ((DIGITS, "digits"),),
}
"""What may follow in each part of a number, and the part it leads to."""
WHOLE_NUMBERS = ("zero", "whole", "share", "digits")
"""The parts that a number may end in."""


@dataclass(frozen=True, slots=True)
class Field:
    """One value of the object."""

    key: str
    text: str
    """As it was written."""


class ObjectReader:
    r"""Reads an object as strictly as JSON says.

    >>> reader = ObjectReader()
    >>> [reader.feed(character) for character in '{"a": [1, "}"]}!']
    [True, True, True, True, True, True, True, True, True, True, True, True, True, True, True, False]
    >>> reader.done, reader.fields
    (True, [Field(key='a', text='[1, "}"]')])
    """

    def __init__(self) -> None:
        self.fields: list[Field] = []
        """The values that are complete, in their order; one key may be there twice."""
        self.key: str | None = None
        """The key whose value is being read, from its first character on."""
        self.done = False
        """Whether the object is closed."""
        self._text: list[str] = []
        self._open: list[str] = []
        self._step: Callable[[str], bool] = self._value
        self._last_key = ""
        self._is_key = False
        self._begin = 0
        self._left = ""
        self._number = ""

    @property
    def text(self) -> str:
        """What was read."""
        return "".join(self._text)

    def feed(self, character: str) -> bool:
        """Read one more character; False when it cannot stand here, and is not read."""
        if self.done or (not self._open and character != "{") or not self._step(character):
            return False
        self._text.append(character)
        return True

    def _value(self, character: str) -> bool:
        return character in BLANKS or self._start(character)

    def _first_item(self, character: str) -> bool:
        return self._close() if character == "]" else self._value(character)

    def _start(self, character: str) -> bool:
        """Begin a value."""
        if len(self._open) == 1:
            self.key, self._begin = self._last_key, len(self._text)
        if character in "{[":
            self._open.append(character)
            self._step = self._first_key if character == "{" else self._first_item
            return len(self._open) <= DEEPEST
        if character == '"':
            self._is_key, self._step = False, self._string
        elif character in LITERALS:
            self._left, self._step = LITERALS[character][1:], self._literal
        elif character in "-" + DIGITS:
            self._number = {"-": "minus", "0": "zero"}.get(character, "whole")
            self._step = self._in_number
        else:
            return False
        return True

    def _first_key(self, character: str) -> bool:
        return self._close() if character == "}" else self._next_key(character)

    def _next_key(self, character: str) -> bool:
        if character == '"':
            self._is_key, self._step = True, self._string
            if len(self._open) == 1:
                self._begin = len(self._text)
            return True
        return character in BLANKS

    def _string(self, character: str) -> bool:
        if character == "\\":
            self._step = self._escape
        elif character == '"' and self._is_key:
            if len(self._open) == 1:
                self._last_key = json.loads("".join(self._text[self._begin :]) + character)
            self._step = self._colon
        elif character == '"':
            self._end(character)
        return character >= " "

    def _escape(self, character: str) -> bool:
        if character == "u":
            self._left, self._step = "0000", self._code
            return True
        self._step = self._string
        return character in '"\\/bfnrt'

    def _code(self, character: str) -> bool:
        self._left = self._left[1:]
        if not self._left:
            self._step = self._string
        return character in "0123456789abcdefABCDEF"

    def _literal(self, character: str) -> bool:
        if character != self._left[0]:
            return False
        self._left = self._left[1:]
        if not self._left:
            self._end(character)
        return True

    def _in_number(self, character: str) -> bool:
        for those, part in NUMBERS[self._number]:
            if character in those:
                self._number = part
                return True
        if self._number not in WHOLE_NUMBERS:
            return False
        self._end("")
        return self._after(character)

    def _colon(self, character: str) -> bool:
        if character == ":":
            self._step = self._value
            return True
        return character in BLANKS

    def _after(self, character: str) -> bool:
        """Read what follows a value."""
        inside = self._open[-1]
        if character == ",":
            self._step = self._next_key if inside == "{" else self._value
            return True
        if character == {"{": "}", "[": "]"}[inside]:
            return self._close(character)
        return character in BLANKS

    def _close(self, character: str = "") -> bool:
        closed = self._open.pop()
        self._end(character or {"{": "}", "[": "]"}[closed])
        return True

    def _end(self, last: str) -> None:
        """End a value with its last character, which is not yet among those that were read."""
        self.done = not self._open
        if len(self._open) == 1 and self.key is not None:
            self.fields.append(Field(self.key, "".join(self._text[self._begin :]) + last))
            self.key = None
        self._step = self._after
