"""What OpenAI's Responses API asks for, as a chat: the same request in other words.

So both are answered on one path. What is refused there is told in the words that the client used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilocal.server.refusal import Refusal

LIKELIHOODS = "message.output_text.logprobs"
"""What a client includes to be told how likely the tokens were."""
FIXED: Mapping[str, tuple[Any, str]] = {
    "background": (False, "must be false: a request is answered at once."),
    "truncation": ("disabled", 'must be "disabled": nothing is cut off a prompt.'),
}
"""Fields with one value that is done."""
KEPT = ("previous_response_id", "conversation")
"""Fields that name what OpenAI keeps between requests."""
OWN = {*FIXED, "input", "instructions", "max_output_tokens", "text", "include", "stream_options"}
"""What a request has here that a chat has in other words, or not at all."""
SHARED = {"tools", "tool_choice", "parallel_tool_calls", "top_logprobs"}
"""What a chat has by the same name, but in another form."""
USUAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
}
"""What clients send without any tools."""
ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = ("input_text", "output_text")
FORMAT = ("type", "name", "description", "schema", "strict")
ITEMS: Mapping[str, tuple[str, ...]] = {
    "message": ("type", "id", "status", "phase", "role", "content"),
    "function_call": ("type", "id", "status", "call_id", "name", "arguments"),
    "function_call_output": ("type", "id", "status", "call_id", "output"),
}
"""The items of an input that are done, and what each may say."""

_RENAMED = (
    (re.compile(r"^response_format\.json_schema\.schema\b"), "text.format.schema"),
    (re.compile(r"^response_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"^(tools\.\d+)\.function\b"), r"\1"),
    (re.compile(r"^messages\b"), "input"),
)
"""The names of a chat's fields, and what they are called here."""
_REWORDED = (
    (" in the messages", " in the input"),
    ("not beside response_format", "not beside text.format"),
    ('no message of the role "tool"', "no function_call_output"),
)
"""What refusals of a chat say of others of its fields, and how that is said here."""
_IN_MESSAGE = re.compile(r"^messages\.(\d+)(?:\.tool_calls\.(\d+))?(?:\.function)?")


@dataclass(slots=True)
class Chat:
    """The messages of a chat, and where the client said each."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    places: list[list[str]] = field(default_factory=list)
    """The item of each message, and then those of its calls."""

    def say(self, role: str, content: str | None, place: str, **more: Any) -> None:
        """Add a message; what an assistant says beside its calls joins them."""
        if role == "assistant" and content is not None and self._has_open_calls():
            self.messages[-1]["content"] = (self.messages[-1]["content"] or "") + content
            return
        self.messages.append({"role": role, "content": content, **more})
        self.places.append([place])

    def call(self, call: Mapping[str, Any], place: str) -> None:
        """Add a call to the assistant's latest message, or to one of its own."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.say("assistant", None, place)
        self.messages[-1].setdefault("tool_calls", []).append(call)
        self.places[-1].append(place)

    def _has_open_calls(self) -> bool:
        return bool(self.messages) and "tool_calls" in self.messages[-1]

    def reworded(self, refusal: Refusal) -> Refusal:
        """Return a refusal of this chat in the words of the request that it was made from."""
        return reworded(refusal, self.places)


def as_chat(request: Mapping[str, Any]) -> tuple[dict[str, Any], Chat]:
    """Return a request as a chat's body, and the chat; raises Refusal for what cannot be said as a chat.

    Numbers, flags and texts have been checked; the rest of the chat is still to be.
    """
    for name, (value, problem) in FIXED.items():
        if name in request and request[name] != value:
            raise _refused(name, problem, "unsupported_value")
    if not all(isinstance(value, str) for value in request.get("metadata", {}).values()):
        raise _refused("metadata", "must be an object of texts.", "invalid_type")
    _check_stream_options(request)
    body = {name: value for name, value in request.items() if name not in OWN | SHARED}
    if "max_output_tokens" in request:
        body["max_tokens"] = request["max_output_tokens"]
    body |= _likelihoods(request) | _tools(request) | _format(request.get("text", {}))
    chat = _chat(request)
    return body | {"messages": chat.messages}, chat


def reworded(refusal: Refusal, places: Sequence[Sequence[str]] = ()) -> Refusal:
    """Return a refusal of a chat in the words of the Responses API; `places` are those of the chat's messages."""
    error = refusal.body["error"]
    param, message = error["param"], error["message"] or ""
    if param is None:
        return refusal
    head, colon, rest = message.partition(":")
    if re.fullmatch(r"[\w.]+", head):
        message = _renamed(head, places) + colon + rest
    for known, new in _REWORDED:
        message = message.replace(known, new, 1)
    kind = error["type"] or "invalid_request_error"
    own = _renamed(param, places)
    return Refusal(refusal.status, message, kind=kind, param=own, code=error["code"], headers=refusal.headers)


def _renamed(name: str, places: Sequence[Sequence[str]]) -> str:
    """Return what a field of a chat is called here.

    >>> _renamed("tools.0.function.name", []), _renamed("messages.1.tool_calls.0.id", [["a"], ["b", "input.2"]])
    ('tools.0.name', 'input.2.call_id')
    """
    found = _IN_MESSAGE.match(name)
    if found and int(found[1]) < len(places):
        own = places[int(found[1])]
        rest = name[found.end() :].replace(".tool_call_id", ".call_id")
        if found[2] is None:
            return own[0] + rest
        return own[1 + int(found[2])] + (".call_id" if rest == ".id" else rest)
    for known, new in _RENAMED:
        name = known.sub(new, name)
    return name


def _refused(name: str, problem: str, code: str = "invalid_value") -> Refusal:
    return Refusal(400, f"{name}: {problem}", param=name, code=code)


def _object(given: Any, name: str, known: Sequence[str]) -> dict[str, Any]:
    """Return an object without its nulls; raises Refusal where it is none, or has other keys than the known ones."""
    if not isinstance(given, dict):
        raise _refused(name, "must be an object.", "invalid_type")
    found = {key: value for key, value in given.items() if value is not None}
    for key in found:
        if key not in known:
            raise _refused(f"{name}.{key}", "this server does not do that.", "unsupported_parameter")
    return found


def _check_stream_options(request: Mapping[str, Any]) -> None:
    name = "stream_options"
    if name not in request:
        return
    if not request.get("stream"):
        raise _refused(name, "only where stream is true.")
    if _object(request[name], name, ("include_obfuscation",)).get("include_obfuscation", False) is not False:
        raise _refused(f"{name}.include_obfuscation", "must be false.", "unsupported_value")


def _likelihoods(request: Mapping[str, Any]) -> dict[str, Any]:
    include, count = request.get("include", []), request.get("top_logprobs", 0)
    if not isinstance(include, list) or not all(each == LIKELIHOODS for each in include):
        raise _refused("include", f"must be a list, of nothing but {LIKELIHOODS}.", "unsupported_value")
    if include:
        return {"logprobs": True, "top_logprobs": count}
    if count:
        raise _refused("top_logprobs", f"only where {LIKELIHOODS} is included.")
    return {}


def _format(text: Any) -> dict[str, Any]:
    """Return the form of the answer as a chat has it."""
    given = _object(text, "text", ("format",)).get("format")
    if given is None:
        return {}
    found = _object(given, "text.format", FORMAT)
    if found.get("type") == "text":
        return {}
    if found.get("type") != "json_schema":
        return {"response_format": found}
    return {"response_format": {"type": "json_schema", "json_schema": {k: v for k, v in found.items() if k != "type"}}}


def _tools(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the functions as a chat has them; without any, what is usual beside them says nothing."""
    found = {name: request[name] for name in USUAL if name in request}
    tools = found.get("tools")
    if tools is None or tools == []:
        return {name: value for name, value in found.items() if not _is_usual(name, value)}
    if isinstance(tools, list):
        found["tools"] = [_tool(tool) for tool in tools]
    if "tool_choice" in found:
        found["tool_choice"] = _choice(found["tool_choice"])
    return found


def _is_usual(name: str, value: Any) -> bool:
    """Tell whether a field asks for nothing where there are no tools; True is not 1 here."""
    return any(type(value) is type(each) and value == each for each in USUAL[name])


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" and v is not None}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if not isinstance(choice, dict) or set(choice) != {"type", "name"} or choice["type"] != "function":
        problem = 'must be none, auto, required, or {"type": "function", "name": ...}.'
        raise _refused("tool_choice", problem)
    return {"type": "function", "function": {"name": choice["name"]}}


def _chat(request: Mapping[str, Any]) -> Chat:
    chat, given = Chat(), request.get("input")
    if "instructions" in request:
        if not isinstance(request["instructions"], str):
            raise _refused("instructions", "must be text.", "invalid_type")
        chat.say("system", request["instructions"], "instructions")
    if isinstance(given, str):
        chat.say("user", given, "input")
        return chat
    if not isinstance(given, list) or not given:
        code = "missing_parameter" if given is None else "invalid_type"
        raise _refused("input", "must be text, or a list of messages, calls and their results.", code)
    for number, item in enumerate(given):
        _add(chat, item, f"input.{number}")
    return chat


def _add(chat: Chat, item: Any, place: str) -> None:
    """Add an item of the input to a chat."""
    kind = item.get("type") if isinstance(item, dict) else None
    kind = "message" if kind is None else kind
    if not isinstance(kind, str) or kind not in ITEMS:
        raise _refused(f"{place}.type", f"must be one of {', '.join(ITEMS)}.", "unsupported_value")
    found = _object(item, place, ITEMS[kind])
    if kind == "function_call":
        function = {"name": found.get("name"), "arguments": found.get("arguments")}
        chat.call({"id": found.get("call_id"), "type": "function", "function": function}, place)
    elif kind == "function_call_output":
        output = _text(found.get("output"), f"{place}.output")
        chat.say("tool", output, place, tool_call_id=found.get("call_id", ""))
    elif found.get("role") not in ROLES:
        raise _refused(f"{place}.role", f"must be one of {', '.join(ROLES)}.")
    else:
        chat.say(found["role"], _text(found.get("content"), f"{place}.content"), place)


def _text(content: Any, name: str) -> str:
    """Return the text of an item: text, or a list of parts that are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _refused(name, "must be text, whole or in parts.", "invalid_type")
    texts = []
    for number, part in enumerate(content):
        where = f"{name}.{number}"
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
            raise _refused(f"{where}.type", f"must be one of {', '.join(TEXT_PARTS)}.", "unsupported_value")
        found = _object(part, where, ("type", "text", "annotations", "logprobs"))
        if not isinstance(found.get("text"), str):
            raise _refused(f"{where}.text", "must be text.", "invalid_type")
        texts.append(found["text"])
    return "".join(texts)
