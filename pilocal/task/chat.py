"""The `messages` of a record, as OpenAI's fine-tuning files have them; what a task cannot carry is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pilocal.errors import InputError
from pilocal.task.formats import system_message
from pilocal.task.json_lines import Line

FORM = 'messages is [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]'

TOOLS = "tools and calls of tools, which a task cannot carry yet"

DROP_TOOLS = "leave such records out, or write the call into the answer as text"

LOST = ("refusal", "audio", "images", "reasoning_content", "reasoning", "thinking")
"""What a message may have beside its content, and what would be lost."""

TEXT_PARTS = ("text", "input_text", "output_text")

Turn = tuple[str, str]
"""A role and what it says."""


def read_messages(messages: Any, where: Line) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
    """Return the turns, oldest first, and the numbers of those of the assistant that are not learned.

    These have `"weight": 0`, or follow no user turn. The turns end with the last answer that is learned; where none is,
    there are no turns. Raises InputError for anything but turns of text that end with a user and an assistant.
    """
    if not isinstance(messages, list):
        raise InputError(where, "messages must be a list", got=messages, fix=FORM)
    turns = tuple(_turn(message, where) for message in messages)
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise InputError(where, "messages must end with a user and an assistant turn", fix=FORM)
    learned = _learned(turns, messages)
    end = max(learned, default=-1) + 1
    said = (number for number, (role, _) in enumerate(turns[:end]) if role == "assistant")
    return turns[:end], tuple(number for number in said if number not in learned)


def _learned(turns: Sequence[Turn], messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the numbers of the answers that are learned: those to a user that have no weight of 0."""
    roles = [role for role, _ in turns]
    answers = [number for number, pair in enumerate(pairwise(roles), 1) if pair == ("user", "assistant")]
    return [number for number in answers if messages[number].get("weight") != 0]


def refuse_tools(record: Mapping[str, Any], where: Line) -> None:
    """Raise InputError if a record, or a message, comes with tools."""
    for key in ("tools", "functions", "tool_calls", "function_call"):
        if record.get(key):
            raise InputError(where, TOOLS, got=key, fix=DROP_TOOLS)


def read_text_of(key: str, value: Any, where: Line, fix: str) -> str:
    """Return a text; raises InputError for a value of another type and for a blank one."""
    if isinstance(value, str):
        if not value.strip():
            raise InputError(where, f"the {key} is empty", got=value, fix=fix)
        return value
    if isinstance(value, bool | int | float):
        written = json.dumps({key: json.dumps(value)})[1:-1]
        raise InputError(where, f"the {key} must be text", got=value, fix=f"write it as text, in quotes: {written}")
    if value is None:
        raise InputError(where, f"the {key} is null", fix=fix)
    kind = "a list" if isinstance(value, list) else "an object"
    raise InputError(where, f"the {key} must be text, not {kind}", got=value, fix="write it as text, in quotes")


def _turn(message: Any, where: Line) -> Turn:
    if not isinstance(message, dict):
        raise InputError(where, "a message must be an object", got=message, fix=FORM)
    role = message.get("role")
    if role in ("system", "developer"):
        raise system_message(where)
    if role in ("tool", "function", "ipython"):
        raise InputError(where, TOOLS, got=role, fix=DROP_TOOLS)
    if role not in ("user", "assistant"):
        raise InputError(where, 'the role of a message must be "user" or "assistant"', got=role, fix=FORM)
    refuse_tools(message, where)
    for key in LOST:
        if message.get(key):
            raise InputError(where, f"a message with {key}, which a task cannot carry", fix="leave such records out")
    weight = message.get("weight")
    if isinstance(weight, bool) or weight not in (None, 0, 1):
        raise InputError(where, "the weight of a message must be 0 or 1", got=weight, fix="correct it or leave it out")
    if "content" not in message:
        raise InputError(where, "a message without content", got=message, fix=FORM)
    return str(role), _content(message["content"], where)


def _content(content: Any, where: Line) -> str:
    """Return the text of a message, whose parts of text are one after the other."""
    if isinstance(content, list) and content:
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else part
            if not isinstance(part, dict) or kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
                fix = "leave such records out, or write it as text"
                raise InputError(where, "a part of a message that is not text", got=kind, fix=fix)
        content = "".join(part["text"] for part in content)
    return read_text_of("content", content, where, FORM)
