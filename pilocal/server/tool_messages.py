"""Checks the calls and results in a chat, and brings them into the form that its chat template takes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilocal.server.partial_json import DEEPEST
from pilocal.server.refusal import Refusal
from pilocal.server.tool_calls import NAME
from pilocal.server.tool_family import Family

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
"""The ids that Mistral's chat templates take."""


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a chat has calls or results in it."""
    return any(message.get("role") == "tool" or message.get("tool_calls") is not None for message in messages)


def messages_for(family: Family, messages: Any) -> list[Mapping[str, Any]]:
    """Return a chat as the family's chat templates take it; raises Refusal with what is wrong.

    Arguments become objects, and ids what the family takes. Where it takes one call a message, several become several
    messages, each followed by its result.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "messages: must be a list of objects.", param="messages", code="invalid_type")
    chat: list[Mapping[str, Any]] = []
    turn = _Turn()
    for number, message in enumerate(messages):
        param = f"messages.{number}"
        _check_message(message, param)
        if message.get("role") == "tool":
            turn.answer(message, param)
            if not turn.waiting:
                chat += turn.messages(family)
            continue
        turn.refuse_if_waiting(param)
        if message.get("tool_calls") is None:
            chat.append({key: value for key, value in message.items() if key != "tool_calls"})
        else:
            turn = _Turn(message, _read_calls(message["tool_calls"], f"{param}.tool_calls"))
    turn.refuse_if_waiting("messages")
    return chat


@dataclass(slots=True)
class _Turn:
    """A message with calls, and the results that follow it."""

    message: Mapping[str, Any] = field(default_factory=dict)
    calls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The functions that are called, by the id of the call."""
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def waiting(self) -> list[str]:
        """The ids of the calls that have no result yet."""
        return [key for key in self.calls if key not in self.results]

    def answer(self, message: Mapping[str, Any], param: str) -> None:
        """Add a result; raises Refusal where it answers no call."""
        key = message.get("tool_call_id")
        if not isinstance(key, str) or key not in self.waiting:
            problem = "must be the id of a call that the assistant's message before it makes and that has no result yet"
            param = f"{param}.tool_call_id"
            raise Refusal(400, f"{param}: {problem}.", param=param, code="invalid_value")
        self.results[key] = message

    def refuse_if_waiting(self, param: str) -> None:
        """Raise Refusal where a call has no result."""
        if self.waiting:
            problem = f'no message of the role "tool" with the result of {", ".join(self.waiting)}'
            raise Refusal(400, f"{param}: {problem}.", param="messages", code="invalid_value")

    def messages(self, family: Family) -> list[Mapping[str, Any]]:
        """Return the turn as the family's chat templates take it."""
        ids = {key: short_id(key) if family.short_ids else key for key in self.calls}
        calls = [{"id": ids[key], "type": "function", "function": function} for key, function in self.calls.items()]
        results = {key: {**result, "tool_call_id": ids[key]} for key, result in self.results.items()}
        said = self.message.get("content") or ""
        if not family.one_at_a_time:
            return [{**self.message, "content": said, "tool_calls": calls}, *results.values()]
        chat: list[Mapping[str, Any]] = []
        for key, call in zip(self.calls, calls, strict=True):
            chat += [{**self.message, "content": "" if chat else said, "tool_calls": [call]}, results[key]]
        return chat


def short_id(key: str) -> str:
    """Return nine letters and digits for an id, always the same.

    >>> short_id("call_1"), short_id("abcDEF123")
    ('74196fe72', 'abcDEF123')
    """
    return key if SHORT_ID.fullmatch(key) else hashlib.sha256(key.encode()).hexdigest()[:9]


def _check_message(message: Mapping[str, Any], param: str) -> None:
    role = message.get("role")
    if role == "function":
        problem = f'{param}.role: "function" is deprecated; send "tool", with a tool_call_id.'
        raise Refusal(400, problem, param=f"{param}.role", code="unsupported_value")
    if message.get("function_call") is not None:
        key = f"{param}.function_call"
        raise Refusal(400, f"{key}: deprecated; send tool_calls.", param=key, code="unsupported_parameter")
    for key, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if message.get(key) is not None and role != owner:
            problem = f'{param}.{key}: only in a message of the role "{owner}".'
            raise Refusal(400, problem, param=f"{param}.{key}", code="invalid_value")


def _read_calls(calls: Any, param: str) -> dict[str, Mapping[str, Any]]:
    """Return the functions that a message calls, by the id of the call, with arguments as objects."""
    if not isinstance(calls, list) or not calls:
        problem = f"{param}: must be a list of calls; leave it out where there are none."
        raise Refusal(400, problem, param=param, code="invalid_type" if calls else "invalid_value")
    found: dict[str, Mapping[str, Any]] = {}
    for number, call in enumerate(calls):
        where = f"{param}.{number}"
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            problem = f"{where}: must be an object with id, type and function."
            raise Refusal(400, problem, param=where, code="invalid_type")
        if call.get("type") != "function":
            problem = f'{where}.type: must be "function"; there are no other tools.'
            raise Refusal(400, problem, param=f"{where}.type", code="unsupported_value")
        key, function = call.get("id"), call["function"]
        if not isinstance(key, str) or not key or key in found:
            problem = f"{where}.id: must be text, and no other call's."
            raise Refusal(400, problem, param=f"{where}.id", code="invalid_value")
        check_name(function.get("name"), f"{where}.function.name")
        arguments = _read_arguments(function.get("arguments"), f"{where}.function.arguments")
        found[key] = {"name": function["name"], "arguments": arguments}
    return found


def check_name(name: Any, param: str) -> None:
    """Raise Refusal for what cannot be a function's name."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        problem = f"{param}: must be 1 to 64 of a-z, A-Z, 0-9, _ and -."
        raise Refusal(400, problem, param=param, code="missing_parameter" if name is None else "invalid_value")


def check_depth(value: Any, param: str, problem: str, limit: int = DEEPEST) -> None:
    """Raise Refusal for a value with more levels of objects and lists than chat templates can write."""
    level = [value]
    for _ in range(limit + 1):
        level = [item for one in level for item in _items(one)]
    if level:
        raise Refusal(400, f"{param}: {problem} has more than {limit} levels.", param=param, code="invalid_value")


def _items(value: Any) -> Sequence[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


def _read_arguments(text: Any, param: str) -> dict[str, Any]:
    """Return arguments as an object; nothing at all counts as an empty one."""
    if not isinstance(text, str):
        raise Refusal(400, f"{param}: must be JSON, as text.", param=param, code="invalid_type")
    try:
        arguments = json.loads(text or "{}", parse_constant=_finite, parse_float=_finite)
        json.dumps(arguments, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{param}: no valid JSON: {error}", param=param, code="invalid_value") from None
    if not isinstance(arguments, dict):
        raise Refusal(400, f"{param}: must be a JSON object.", param=param, code="invalid_value")
    check_depth(arguments, param, "the object")
    return arguments


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
