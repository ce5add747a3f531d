"""The JSON object of a tool call, read a character at a time."""

from __future__ import annotations

import json
from collections.abc import Collection

from pilocal.server.partial_json import ObjectReader

ARGUMENTS = ("arguments", "parameters")
"""The keys that arguments may stand under; models mix them up."""


class CallReader:
    """Reads a function's name and its arguments, or the arguments alone.

    >>> reader = CallReader({"add"})
    >>> all(reader.feed(character) for character in '{"name": "add", "arguments": {"a": 1}}')
    True
    >>> reader.call
    ('add', '{"a": 1}')
    """

    def __init__(self, names: Collection[str], name: str | None = None) -> None:
        """Take the names of the functions; with `name`, the object is the arguments of this one."""
        self._names = names
        self._json = ObjectReader()
        self.is_arguments = name is not None
        """Whether the object is the arguments alone."""
        self._is_inside = name is not None
        self.name = name
        """The function's; set at the latest with the first piece of its arguments."""
        self.piece = ""
        """The last character, where it is one of the arguments and the name is known by then."""

    @property
    def text(self) -> str:
        """What was read."""
        return self._json.text

    @property
    def done(self) -> bool:
        """Whether the object is closed."""
        return self._json.done

    @property
    def key(self) -> str | None:
        """The key whose value is being read."""
        return self._json.key

    @property
    def call(self) -> tuple[str, str] | None:
        """Name and arguments of a complete object; None where it is no call of one of the functions."""
        if self.is_arguments and self.name is not None:
            return self.name, self.text
        arguments = self._arguments()
        name = self._find_name() if len(arguments) == 1 and arguments[0].startswith("{") else None
        return None if name is None else (name, arguments[0])

    def feed(self, character: str) -> bool:
        """Read one more character; False when it cannot stand here, and is not read."""
        before = self._json.key
        if not self._json.feed(character):
            return False
        if not self._is_inside and before is None and character == "{" and self._json.key in ARGUMENTS:
            self.name = None if self._arguments() else self._find_name()
            self._is_inside = self.name is not None
        self.piece = character if self._is_inside else ""
        if self._is_inside and not self.is_arguments:
            self._is_inside = self._json.key is not None
        return True

    def _arguments(self) -> list[str]:
        return [field.text for field in self._json.fields if field.key in ARGUMENTS]

    def _find_name(self) -> str | None:
        names = [field.text for field in self._json.fields if field.key == "name"]
        name = json.loads(names[0]) if len(names) == 1 and names[0].startswith('"') else None
        return name if name in self._names else None
