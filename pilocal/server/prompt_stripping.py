"""Removes the template and the shots that old callers still send, since the weights know them already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pilocal.prompt.render import render
from pilocal.server.slotted import Shape, SlottedWording
from pilocal.server.wording import Wording, squeeze
from pilocal.task import Example

Turn = tuple[str, str]
"""Role and squeezed content."""
Chat = list[dict[str, Any]]
"""Messages; every content is text."""


class KnownPrompt:
    r"""The template and shots of a task, as they are found in what callers send.

    Both are known up to white space, byte order marks and Unicode form.

    >>> known = KnownPrompt("Add.\nBe quick.", [Example(id="1", query="2+2", answer="4")])
    >>> asked = {"role": "user", "content": "3+3"}
    >>> full = [{"role": "system", "content": "Add. \r\nBe quick.\r\nToday is Monday."},
    ...         {"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}, asked]
    >>> known.strip(full)
    [{'role': 'system', 'content': 'Today is Monday.'}, {'role': 'user', 'content': '3+3'}]
    >>> known.strip([{"role": "user", "content": "Add. Be quick.\n\n 3+3\n"}])
    [{'role': 'user', 'content': ' 3+3\n'}]
    >>> KnownPrompt("Subtract.", []).strip(full) == full
    True
    >>> dated = KnownPrompt("Add.\nToday is {{today}}.", [], shapes={"today": Shape()})
    >>> dated.find([{"role": "user", "content": "Add. Today is Monday.\n\n3+3"}])
    ([{'role': 'user', 'content': '3+3'}], {'today': 'Monday'})
    """

    def __init__(
        self,
        template: str,
        examples: Iterable[Example],
        *,
        shots_alone: bool = False,
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        """Take the template and the examples that may be shots; `shapes` are those of the values of its slots.

        With `shots_alone`, a template without a word does not keep shots from being found.
        """
        self._template = SlottedWording(template, shapes) if shapes else Wording(template)
        self._shots = _shot_turns(examples)
        self._shots_alone = shots_alone and not squeeze(template)

    def strip(self, chat: Chat) -> Chat:
        """Return the chat without any copy of the template, and then without the shots that its turns begin with.

        What stood around a copy stays: in the system message, or in front of the query. A chat without the template is
        returned as it is, and so is one of which nothing would be left to answer.
        """
        return self.find(chat)[0]

    def find(self, chat: Chat) -> tuple[Chat, Mapping[str, str]]:
        """Return the chat as `strip` does, and what stood in the slots of the template; nothing where copies differ."""
        values: dict[str, str] = {}
        stripped = [self._without_template(message, values) for message in chat]
        as_sent = all(new is old for new, old in zip(stripped, chat, strict=True))
        if as_sent and not self._shots_alone:
            return chat, {}
        left = [message for message in stripped if message is not None]
        start = next((i for i, message in enumerate(left) if message["role"] != "system"), len(left))
        if not left[start:]:
            return chat, {}
        bare = left[:start] + self._without_shots(left[start:])
        return (chat, {}) if as_sent and len(bare) == len(chat) else (bare, values)

    def _around(self, message: Mapping[str, Any], values: dict[str, str]) -> list[str] | None:
        """Return what stands around the template in a message, and add what is in its slots; None where it is not."""
        role, content = message["role"], message["content"]
        if role not in ("system", "user"):
            return None
        if isinstance(self._template, Wording):
            return self._template.around(content)
        found = self._template.find(content, whole=role == "system")
        if found is None or any(values.get(name, value) != value for name, value in found.values.items()):
            return None
        if role == "system" or squeeze(found.pieces[-1]):
            values.update(found.values)
        return found.pieces

    def _without_template(self, message: dict[str, Any], values: dict[str, str]) -> dict[str, Any] | None:
        """Return a message without the template, or as it is; None when it was the template and nothing else."""
        around = self._around(message, values)
        if around is None:
            return message
        *context, last = [piece for piece in around if squeeze(piece)] or [""]
        if message["role"] == "system":
            content = "\n\n".join([*context, last]).strip()
            return {**message, "content": content} if content else None
        if not squeeze(around[-1]):  # the template and no query, or a query before it: neither was taught
            return message
        return {**message, "content": "\n\n".join([*context, last])}

    def _without_shots(self, chat: Chat) -> Chat:
        turns = [(message["role"], squeeze(message["content"])) for message in chat]
        start = 0
        while solved := next(
            (shot for shot in self._shots.get(turns[start], ()) if _goes_on(turns, start, shot)), None
        ):
            start += len(solved)
        return chat[start:]


def _goes_on(turns: Sequence[Turn], start: int, shot: tuple[Turn, ...]) -> bool:
    """Tell whether the turns from a place on are a shot, and others follow; else the shot is the question."""
    end = start + len(shot)
    return end < len(turns) and tuple(turns[start:end]) == shot


def _shot_turns(examples: Iterable[Example]) -> Mapping[Turn, Sequence[tuple[Turn, ...]]]:
    r"""Return each example's turns in a prompt where it is a shot, by its first turn; the longest come first.

    >>> _shot_turns([Example(id="1", query=" 2", answer="4")])
    {('user', '\x002\x00'): [(('user', '\x002\x00'), ('assistant', '\x004\x00'))]}
    """
    by_first_turn: defaultdict[Turn, set[tuple[Turn, ...]]] = defaultdict(set)
    for example in examples:
        for one in (replace(example, slots={}), example):  # an old caller's own shots may state no values
            turns = render("", (), one)["messages"]
            solved = tuple((turn["role"], squeeze(turn["content"])) for turn in turns)
            by_first_turn[solved[0]].add(solved)
    return {first: sorted(solved, key=len, reverse=True) for first, solved in by_first_turn.items()}
