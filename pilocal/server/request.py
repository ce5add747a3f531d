"""Turns the bytes that a client sent into a request for llama-cpp-python, or into a refusal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pilocal.server.llama_server import validate_request
from pilocal.server.refusal import Refusal

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TYPES = {
    CHAT: "CreateChatCompletionRequest",
    COMPLETION: "CreateCompletionRequest",
    "/extras/tokenize": "TokenizeInputRequest",
    "/extras/tokenize/count": "TokenizeInputRequest",
    "/extras/detokenize": "DetokenizeInputRequest",
}
"""The endpoints that take a body, and llama-cpp-python's type of each."""

ROLES = ("system", "user", "assistant", "tool", "function")
WHOLE, ANY = "a whole number", "a number"
NUMBERS: Mapping[str, tuple[str, float, float]] = {
    "max_tokens": (WHOLE, 1, math.inf),
    "max_completion_tokens": (WHOLE, 1, math.inf),
    "min_tokens": (WHOLE, 0, math.inf),
    "n": (WHOLE, 1, math.inf),
    "best_of": (WHOLE, 1, math.inf),
    "seed": (WHOLE, -(2**63), 2**63 - 1),
    "top_k": (WHOLE, 0, 2**31 - 1),
    "top_logprobs": (WHOLE, 0, 20),
    "temperature": (ANY, 0, 2),
    "top_p": (ANY, 0, 1),
    "min_p": (ANY, 0, 1),
    "presence_penalty": (ANY, -2, 2),
    "frequency_penalty": (ANY, -2, 2),
    "repeat_penalty": (ANY, 0, 100),
    "mirostat_tau": (ANY, 0, 10),
    "mirostat_eta": (ANY, 0, 1),
}
"""What each number may be; beyond some of OpenAI's bounds lie numbers that are infinite in llama.cpp."""
FLAGS = ("stream", "echo")
MOST_STOPS = 4
UNSUPPORTED = ("logprobs", "suffix", "grammar")
"""Parameters that are refused; llama.cpp ends the whole process on a grammar that no token fits."""


def read_request(path: str, body: bytes, vocabulary: int) -> dict[str, Any]:
    """Return the checked request; raises Refusal with what is wrong, before anything is computed.

    What newer OpenAI clients send is translated for llama-cpp-python: the role `developer`, text in parts,
    `max_completion_tokens`. What llama-cpp-python would ignore, fail on in the middle of an answer, or crash on is
    refused. `vocabulary` is the number of tokens.
    """
    import pydantic

    request = _parse(body)
    if path in (CHAT, COMPLETION):
        _check_fields(request)
    if path == CHAT:
        _translate(request)
    try:
        checked = validate_request(TYPES[path], request)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise Refusal(400, f"{param}: {first['msg']}", param=param) from None
    _check(checked)
    _check_tokens(checked, vocabulary)
    return checked | {key: request[key] for key in ("stream_options",) if key in request}


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body, parse_constant=_finite, parse_float=_finite)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(request, dict):
        raise Refusal(400, "The body must be a JSON object.", code="invalid_json")
    return {key: value for key, value in request.items() if value is not None}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _check_fields(request: Mapping[str, Any]) -> None:
    """Raise Refusal for what OpenAI refuses, but llama-cpp-python takes for something else or ignores."""
    for name, (kind, low, high) in NUMBERS.items():
        value = request.get(name, low)
        if not _is_number(value) or (kind == WHOLE and value != int(value)):
            raise Refusal(400, f"{name}: must be {kind}.", param=name, code="invalid_type")
        if not low <= value <= high:
            bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise Refusal(400, f"{name}: must be {bounds}.", param=name, code="invalid_value")
    for name in FLAGS:
        if not isinstance(request.get(name, False), bool):
            raise Refusal(400, f"{name}: must be true or false.", param=name, code="invalid_type")
    _check_stop(request.get("stop", []))
    _check_stream_options(request)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_stop(stop: Any) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "stop: must be text, or a list of texts.", param="stop", code="invalid_type")
    if len(texts) > MOST_STOPS:
        raise Refusal(400, f"stop: at most {MOST_STOPS} texts.", param="stop", code="invalid_value")
    if "" in texts:
        raise Refusal(400, "stop: a text must not be empty.", param="stop", code="invalid_value")


def _check_stream_options(request: Mapping[str, Any]) -> None:
    name = "stream_options"
    if name not in request:
        return
    if not request.get("stream"):
        raise Refusal(400, f"{name}: only where stream is true.", param=name, code="invalid_value")
    options = request[name]
    if not isinstance(options, dict) or not isinstance(options.get("include_usage") or False, bool):
        problem = f"{name}: must be an object, and include_usage true or false."
        raise Refusal(400, problem, param=name, code="invalid_type")


def _translate(request: dict[str, Any]) -> None:
    limit = request.pop("max_completion_tokens", None)
    if request.get("max_tokens") is None and limit is not None:
        request["max_tokens"] = limit
    messages = request.setdefault("messages", [])
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        param = f"messages.{number}"
        if not isinstance(message, dict):
            raise Refusal(400, f"{param}: must be an object.", param=param)
        if message.get("role") == "developer":
            message["role"] = "system"
        if message.get("role") not in ROLES:
            raise Refusal(400, f"{param}.role: must be one of {', '.join(ROLES)}.", param=f"{param}.role")
        message["content"] = _text(message.get("content"), f"{param}.content")


def _text(content: Any, param: str) -> str:
    """Return the text of a message's content: text, a list of parts, or nothing, as beside a tool call."""
    parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(texts):
        raise Refusal(400, f"{param}: must be text, whole or in parts.", param=param)
    return "".join(found)


def _check(request: dict[str, Any]) -> None:
    if not request.get("messages", True):
        raise Refusal(400, "messages: at least one is needed.", param="messages")
    prompt = request.get("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1:
            raise Refusal(400, "prompt: exactly one is answered at a time.", param="prompt")
        request["prompt"] = prompt[0]
    for name in ("n", "best_of"):
        if request.get(name) not in (None, 1):
            raise Refusal(400, f"{name}: a request gets one answer.", param=name, code="unsupported_value")
    schema = request.get("response_format") or {}
    for name, given in (
        *((name, request.get(name)) for name in UNSUPPORTED),
        ("response_format.schema", schema.get("schema")),
        ("tool_choice", isinstance(request.get("tool_choice"), dict)),
        ("function_call", isinstance(request.get("function_call"), dict)),
    ):
        if given is not None and given is not False:
            raise Refusal(400, f"{name}: this server does not do that.", param=name, code="unsupported_parameter")


def _check_tokens(request: dict[str, Any], vocabulary: int) -> None:
    bias = request.get("logit_bias") or {}
    tokens: list[Any] = list(request.get("tokens", ()))
    if request.get("logit_bias_type") != "tokens":
        tokens += [int(key) if key.isdecimal() else -1 for key in bias]
    if not all(0 <= token < vocabulary for token in tokens):
        raise Refusal(400, f"Tokens are numbers from 0 to {vocabulary - 1}.")
    # Not the opposite: "nan" is a number to llama-cpp-python.
    if not all(abs(value) <= 100 for value in bias.values()):
        raise Refusal(400, "logit_bias: must be from -100 to 100.", param="logit_bias")
