"""The values of slots as a caller states them before a bare query: in the form that the training rows have."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from pilocal.server.prompt_stripping import Chat
from pilocal.server.slotted import Shape
from pilocal.task.slots import clean


class StatedValues:
    r"""Finds values before the first thing that the user says.

    >>> dated = StatedValues({"today": Shape(), "passages": Shape(lines=True)})
    >>> dated.find([{"role": "user", "content": "today: Monday\npassages: One.\nTwo.\n\nWhich day?"}])
    ([{'role': 'user', 'content': 'Which day?'}], {'today': 'Monday', 'passages': 'One.\nTwo.'})
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = dict(shapes)

    def find(self, chat: Chat, known: Collection[str] = ()) -> tuple[Chat, dict[str, str]]:
        """Return a chat without the values that are stated in it, and these; `known` are those it had elsewhere.

        All others have to be stated, in the template's order, and a blank line has to follow. Where values have blank
        lines within, more than one is not read: it would not be clear where the query begins.
        """
        names = [name for name in self._shapes if name not in known]
        first = next((number for number, message in enumerate(chat) if message["role"] == "user"), None)
        if first is None or not names:
            return chat, {}
        query, values = self._parted(chat[first]["content"], names)
        return [*chat[:first], {**chat[first], "content": query}, *chat[first + 1 :]] if values else chat, values

    def _parted(self, text: str, names: list[str]) -> tuple[str, dict[str, str]]:
        """Return what follows the values in a text, and these; none where it is not clear what they are."""
        head, _, query = text.replace("\r\n", "\n").lstrip("\ufeff\n").partition("\n\n")
        if "\n\n" in query and any(self._shapes[name].paragraphs for name in names):
            return text, {}
        values = self._read(head.split("\n"), names) if query.strip() else None
        return (query, values) if values else (text, {})

    def _read(self, lines: list[str], names: list[str]) -> dict[str, str] | None:
        """Return what some lines state of all these slots, and nothing else; None where they do not."""
        values: dict[str, list[str]] = {}
        for line in lines:
            at = len(values)
            if at < len(names) and (match := re.match(rf"{re.escape(names[at])}:(?: |$)", line)):
                values[names[at]] = [line[match.end() :]]
            elif at and self._shapes[names[at - 1]].lines:
                values[names[at - 1]].append(line)
            else:
                return None
        return {name: clean("\n".join(said)) for name, said in values.items()} if len(values) == len(names) else None
