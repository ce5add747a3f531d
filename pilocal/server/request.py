"""Turns the bytes that a client sent into a checked request, or into a refusal.

What is known is checked, whatever else a client sends is refused by its name: nothing is ignored that could change an
answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilocal.server.form import read_form
from pilocal.server.refusal import Refusal
from pilocal.server.responses_request import KEPT, OWN, SHARED, as_chat
from pilocal.server.tool_family import Family
from pilocal.server.tool_messages import check_depth
from pilocal.server.tool_request import OLD, ToolRequest, read_tools

CHAT, RESPONSES, COMPLETION = "/v1/chat/completions", "/v1/responses", "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
CHATS = (CHAT, RESPONSES)
"""The endpoints that answer a chat."""
PATHS = (CHAT, RESPONSES, COMPLETION, EMBEDDINGS)
"""The endpoints that take a body."""

ROLES = ("system", "user", "assistant", "tool", "function")
WHOLE, ANY = "a whole number", "a number"
NUMBERS: Mapping[str, tuple[str, float, float]] = {
    "max_tokens": (WHOLE, 1, math.inf),
    "max_completion_tokens": (WHOLE, 1, math.inf),
    "max_output_tokens": (WHOLE, 1, math.inf),
    "n": (WHOLE, 1, 16),
    "best_of": (WHOLE, 1, 1),
    "seed": (WHOLE, -(2**63), 2**63 - 1),
    "top_k": (WHOLE, 0, 2**31 - 1),
    "top_logprobs": (WHOLE, 0, 20),
    "temperature": (ANY, 0, 2),
    "top_p": (ANY, 0, 1),
    "min_p": (ANY, 0, 1),
    "presence_penalty": (ANY, -2, 2),
    "frequency_penalty": (ANY, -2, 2),
    "repeat_penalty": (ANY, 0.01, 100),
}
"""What each number may be; beyond some of OpenAI's bounds lie numbers that are infinite in float32."""
NOTHING: Mapping[str, Any] = {
    "tools": [],
    "stop": [],
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), -1),
}
"""What says as much as null."""
FLAGS = ("stream", "echo", "store")
TEXTS = ("model", "grammar", "user", "prompt_cache_key", "safety_identifier", "service_tier")
"""What is text; from the third on they are labels, which change no answer."""
MOST_STOPS = 4
MOST_LOGPROBS = 5
"""Tokens that are told beside each of a raw prompt's answer."""

SLOTS = "pilocal_slots"
"""The values of the template's slots, beside a bare query."""
COMMON = {*NUMBERS, *FLAGS, *TEXTS, "stop", "stream_options", "logit_bias", "logprobs", "metadata"}
COMMON -= {"best_of", "echo", "max_output_tokens"}
FIELDS: Mapping[str, set[str]] = {
    CHAT: COMMON | {SLOTS, "messages", "response_format", "tools", "tool_choice", "parallel_tool_calls", *OLD},
    RESPONSES: (COMMON | OWN | SHARED | {SLOTS}) - {"max_tokens", "max_completion_tokens", "n", "logprobs"},
    COMPLETION: (COMMON | {"prompt", "best_of", "echo"}) - {"top_logprobs", "max_completion_tokens"},
}
"""What each endpoint knows; all else is refused."""
TOKEN = re.compile(r"[0-9]{1,20}")
DEEPEST = 128
"""Levels of objects and lists in a request; what goes through it recurses."""
NOT_DONE = "this server does not do that."


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRequest:
    """What a client asks for, checked."""

    body: dict[str, Any]
    """What it sent, as the chat template and the choice of tokens take it."""
    tools: ToolRequest | None = None
    """The functions that the answer may call; None where there are none."""
    grammar: str | None = None
    """What the answer must be, in GBNF."""
    sent: Mapping[str, Any] = field(default_factory=dict)
    """The request in the client's own words, where `body` has others."""


def read_request(path: str, body: bytes, vocabulary: int, family: Family) -> ClientRequest:
    """Return the checked request; raises Refusal with what is wrong, before anything is computed.

    What newer OpenAI clients send is translated: the role `developer`, text in parts, `max_completion_tokens`, and a
    list of one raw prompt. `vocabulary` is the number of tokens, `family` that of the chat template.
    """
    request = parse_body(body)
    for name in request:
        if name not in FIELDS[path]:
            problem = "this server keeps nothing; send the whole conversation." if name in KEPT else NOT_DONE
            raise _refused(name, problem, "unsupported_parameter")
    _check_numbers(request)
    _check_kinds(request)
    _check_stop(request.get("stop", []))
    _check_bias(request.get("logit_bias", {}), vocabulary)
    if path == RESPONSES:
        said, chat = as_chat(request)
        try:
            return replace(_read_chat(said, family), sent=request)
        except Refusal as refusal:
            raise chat.reworded(refusal) from None
    _check_stream_options(request)
    if path == CHAT:
        return _read_chat(request, family)
    _check_prompt(request)
    return ClientRequest(body=request, grammar=read_form(request))


def _read_chat(request: dict[str, Any], family: Family) -> ClientRequest:
    """Return a chat's checked request, of which numbers, flags and texts have been checked."""
    _translate(request)
    _check_chat(request)
    tools = read_tools(request, family)
    request["messages"] = list(tools.messages)
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        request.pop(name, None)
    if tools.tools:
        request["tools"] = list(tools.tools)
        return ClientRequest(body=request, tools=tools, grammar=read_form(request, tools, family))
    return ClientRequest(body=request, grammar=read_form(request))


def _refused(name: str, problem: str, code: str | None = None) -> Refusal:
    return Refusal(400, f"{name}: {problem}", param=name, code=code)


def parse_body(body: bytes) -> dict[str, Any]:
    """Return a request's fields without its nulls; raises Refusal for what is no JSON object."""
    try:
        request = json.loads(body, parse_constant=_finite, parse_float=_finite)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(request, dict):
        raise Refusal(400, "The body must be a JSON object.", code="invalid_json")
    check_depth(request, "body", "the request", DEEPEST)
    return _settled(request)


def _settled(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request without what clients send to say nothing: nulls, no tools, no stop, no limit.

    Some leave a list empty, send "" for no text, or -1 for as many tokens as there is room for, as LM Studio and
    llama.cpp take it. A call that is asked for without tools stays, and is refused.
    """
    if isinstance(stop := request.get("stop"), str | list):
        request = {**request, "stop": [text for text in ([stop] if isinstance(stop, str) else stop) if text != ""]}
    said = {name: value for name, value in request.items() if value is not None and value != NOTHING.get(name)}
    return said if "tools" in said else {name: said[name] for name in said if not _says_no_tools(name, said[name])}


def _says_no_tools(name: str, value: Any) -> bool:
    """Tell whether a field says nothing where there are no tools."""
    if name == "parallel_tool_calls":
        return isinstance(value, bool)
    return name == "tool_choice" and value in ("auto", "none")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _check_numbers(request: dict[str, Any]) -> None:
    for name, (kind, low, high) in NUMBERS.items():
        if name not in request:
            continue
        value = request[name]
        if not _is_number(value) or (kind == WHOLE and value != int(value)):
            raise _refused(name, f"must be {kind}.", "invalid_type")
        if not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise _refused(name, f"must be {bounds}.", "invalid_value")
        request[name] = int(value) if kind == WHOLE else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_kinds(request: Mapping[str, Any]) -> None:
    kinds: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
        (FLAGS, lambda value: isinstance(value, bool), "true or false"),
        (TEXTS, lambda value: isinstance(value, str), "text"),
        (("metadata", "logit_bias", SLOTS), lambda value: isinstance(value, dict), "an object"),
    )
    for names, fits, kind in kinds:
        for name in names:
            if name in request and not fits(request[name]):
                raise _refused(name, f"must be {kind}.", "invalid_type")
    for name, value in request.get(SLOTS, {}).items():
        if not isinstance(value, str):
            raise Refusal(400, f"{SLOTS}: the value of {name} must be text.", param=SLOTS, code="invalid_type")
    if request.get("store"):
        raise _refused("store", "this server stores nothing.", "unsupported_value")


def _check_stop(stop: Any) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if not all(isinstance(text, str) for text in texts):
        raise _refused("stop", "must be text, or a list of texts.", "invalid_type")
    if len(texts) > MOST_STOPS:
        raise _refused("stop", f"at most {MOST_STOPS} texts.", "invalid_value")


def _check_stream_options(request: Mapping[str, Any]) -> None:
    name = "stream_options"
    if name not in request:
        return
    if not request.get("stream"):
        raise _refused(name, "only where stream is true.", "invalid_value")
    options = request[name]
    if not isinstance(options, dict) or not isinstance(options.get("include_usage") or False, bool):
        raise _refused(name, "must be an object, and include_usage true or false.", "invalid_type")


def _check_bias(bias: Mapping[str, Any], vocabulary: int) -> None:
    if not all(TOKEN.fullmatch(token) and int(token) < vocabulary for token in bias):
        raise _refused("logit_bias", f"Tokens are numbers from 0 to {vocabulary - 1}.")
    if not all(_is_number(value) and abs(value) <= 100 for value in bias.values()):
        raise _refused("logit_bias", "must be from -100 to 100.")


def _translate(request: dict[str, Any]) -> None:
    limit = request.pop("max_completion_tokens", None)
    if limit is not None:
        request.setdefault("max_tokens", limit)
    messages = request.setdefault("messages", [])
    if not isinstance(messages, list):
        raise _refused("messages", "must be a list.")
    for number, message in enumerate(messages):
        param = f"messages.{number}"
        if not isinstance(message, dict):
            raise _refused(param, "must be an object.")
        if message.get("role") == "developer":
            message["role"] = "system"
        if message.get("role") not in ROLES:
            raise _refused(f"{param}.role", f"must be one of {', '.join(ROLES)}.")
        message["content"] = _text(message.get("content"), f"{param}.content")


def _text(content: Any, param: str) -> str:
    """Return the text of a message's content: text, a list of parts, or nothing, as beside a tool call."""
    parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(texts):
        raise _refused(param, "must be text, whole or in parts.")
    return "".join(found)


def _check_chat(request: Mapping[str, Any]) -> None:
    if not request["messages"]:
        raise _refused("messages", "at least one is needed.")
    if not isinstance(request.get("logprobs", False), bool):
        raise _refused("logprobs", "must be true or false.", "invalid_type")
    if "top_logprobs" in request and not request.get("logprobs"):
        raise _refused("top_logprobs", "only where logprobs is true.", "invalid_value")


def _check_prompt(request: dict[str, Any]) -> None:
    prompt = request.get("prompt", "")
    if isinstance(prompt, list):
        if len(prompt) != 1:
            raise _refused("prompt", "exactly one is answered at a time.")
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise _refused("prompt", "must be text.", "invalid_type")
    request["prompt"] = prompt
    count = request.get("logprobs", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_LOGPROBS:
        raise _refused("logprobs", f"must be a whole number from 0 to {MOST_LOGPROBS}.", "invalid_value")
