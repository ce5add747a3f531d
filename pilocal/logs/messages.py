"""Messages and answers as the usual interfaces write them: OpenAI's two, Anthropic's, Ollama's, and streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.logs.exchange import CUT_OFF, EMPTY_ANSWER, FAILED, FORM, PICTURES, TOOLS, LeftOut

TEXTS = ("text", "input_text", "output_text")

CALLS = ("tool_use", "tool_result", "function_call", "function_call_output", "tool_call", "server_tool_use")

SILENT = ("reasoning", "thinking", "redacted_thinking")
"""Parts and items that no client shows."""

ROLES = {"developer": "system", "human": "user", "gpt": "assistant", "model": "assistant", "ai": "assistant"}
"""Roles that other programs write otherwise."""

CUT = ("length", "max_tokens", "max_output_tokens", "content_filter", "incomplete")
"""Why an answer may end before its end."""


def messages_of(asked: Any) -> list[Any]:
    """Return the messages of a request: a list, a text, or a body that holds one of both; none if it holds neither."""
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}] if asked.strip() else []
    if isinstance(asked, list):
        if asked and all(isinstance(each, str) for each in asked):
            return [{"role": "user", "content": "".join(asked)}]
        return [_chat_message(each) for each in asked]
    return _messages_in(asked) if isinstance(asked, dict) else []


def _messages_in(body: Mapping[str, Any]) -> list[Any]:
    """Return the messages in an object: a request, its body, or a single message."""
    for key in ("body", "json", "data", "args", "kwargs"):
        inner = _opened(body.get(key))
        if isinstance(inner, dict) and (found := messages_of(inner)):
            return found
    for key in ("messages", "input", "prompt"):
        if body.get(key) and (found := messages_of(body[key])):
            system = [body[name] for name in ("system", "instructions") if body.get(name)]
            return [*({"role": "system", "content": text} for text in system), *found]
    return [body] if "role" in body and "content" in body else []


def _opened(value: Any) -> Any:
    """Return the object that a text of JSON holds; anything else as it is."""
    return _loaded(value) if isinstance(value, str) and value.lstrip()[:1] == "{" else value


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _chat_message(message: Any) -> Any:
    """Return a message with `role` and `content`, also one of ShareGPT's, or an item of the Responses interface."""
    if not isinstance(message, dict):
        return message
    if "from" in message and "value" in message:
        return {"role": ROLES.get(str(message["from"]), message["from"]), "content": message["value"]}
    if "role" not in message and message.get("type") in CALLS:
        return {"role": "tool", "content": ""}
    return message


def merged(messages: Sequence[Any]) -> list[tuple[str, str]]:
    """Return (role, text) for all messages, those of one role that follow each other joined.

    Raises LeftOut for a message that is not text.
    """
    found: list[tuple[str, str]] = []
    for message in messages:
        if not isinstance(message, dict):
            raise LeftOut(FORM, "a message that is not an object")
        role = ROLES.get(str(message.get("role")), str(message.get("role")))
        if message.get("type") in SILENT:
            continue
        if role not in ("system", "user", "assistant"):
            raise LeftOut(FORM, f"the role {role}")
        text = text_of(message).replace("\r\n", "\n")
        if found and found[-1][0] == role:
            found[-1] = (role, "\n\n".join(part for part in (found[-1][1], text) if part))
        else:
            found.append((role, text))
    return found


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message; raises LeftOut for pictures, sound, files and calls of tools."""
    if message.get("audio") or message.get("images"):
        raise LeftOut(PICTURES)
    return _content(message.get("content"))


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        content = [content]
    return "".join(map(_part, content)) if isinstance(content, list) else str(content)


def _part(part: Any) -> str:
    """Return the text of a part of a message."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in CALLS:
        raise LeftOut(TOOLS)
    if kind in SILENT:
        return ""
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise LeftOut(EMPTY_ANSWER if kind == "refusal" else PICTURES, str(kind))
    return str(part["text"])


def answer_of(said: Any) -> str | None:
    """Return the answer in a response; None where it has none of the forms that are known.

    Raises LeftOut for a call of a tool, and an answer that was cut off or failed.
    """
    if isinstance(said, str):
        return _of_stream(said) if said.startswith("data:") else None
    if isinstance(said, list):
        return _of_list(said)
    if not isinstance(said, dict):
        return None
    _check_whole(said)
    if isinstance(said.get("choices"), list):
        if not said["choices"]:
            raise LeftOut(EMPTY_ANSWER)
        return answer_of(said["choices"][0])
    if isinstance(said.get("output"), list):
        return _of_items(said["output"])
    return _of_body(said)


def _check_whole(said: Mapping[str, Any]) -> None:
    """Raise LeftOut for a response that failed, calls a tool, or was cut off."""
    if said.get("error"):
        raise LeftOut(FAILED, str(said["error"])[:100])
    for key in ("status_code", "statusCode"):
        if isinstance(said.get(key), int) and said[key] != 200:
            raise LeftOut(FAILED, f"{key} {said[key]}")
    if said.get("tool_calls") or said.get("function_call"):
        raise LeftOut(TOOLS)
    ends = [str(said.get(key)) for key in ("finish_reason", "stop_reason", "done_reason", "status")]
    if cut := next((end for end in ends if end in CUT), None):
        raise LeftOut(CUT_OFF, cut)


def _of_body(said: Mapping[str, Any]) -> str | None:
    """Return the answer in an object that holds a message or a text."""
    for key in ("body", "message", "delta", "json"):
        inner = _opened(said.get(key))
        if isinstance(inner, dict) and inner:
            return answer_of(inner)
        if isinstance(inner, str) and key == "body":
            return answer_of(inner) or inner
    return text_of(said) if "content" in said and {"role", "stop_reason", "type"} & said.keys() else _text_in(said)


def _text_in(said: Mapping[str, Any]) -> str | None:
    """Return the text in an object under one of the names that the interfaces have."""
    names = ["output_text", "completion", "generated_text"]
    names += [name for name, mark in (("text", "finish_reason"), ("response", "done")) if mark in said]
    return next((said[name] for name in names if isinstance(said.get(name), str)), None)


def _of_items(items: Sequence[Any]) -> str:
    """Return the text of the items of a response of OpenAI's Responses interface."""
    found = []
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if isinstance(kind, str) and kind.endswith("_call"):
            raise LeftOut(TOOLS)
        if isinstance(item, dict) and kind in (None, "message"):
            found.append(text_of(item))
    return "".join(found)


def _of_list(said: Sequence[Any]) -> str | None:
    """Return the answer in a list: pieces of a stream, several choices, or messages of which the last counts."""
    if not said or not all(isinstance(each, dict) for each in said):
        return None
    if any(map(_is_piece, said)):
        return _joined(said)
    if all(map(_is_message, said)):
        if any(each.get("type") in CALLS for each in said):
            raise LeftOut(TOOLS)
        return answer_of(said[-1])
    return _content(list(said)) if all("text" in each for each in said) else None


def _is_message(each: Mapping[str, Any]) -> bool:
    return "role" in each or each.get("type") in ("message", *SILENT, *CALLS)


def _is_piece(each: Mapping[str, Any]) -> bool:
    """Tell whether an object is a piece of a stream."""
    return str(each.get("object", "")).endswith(".chunk") or "delta" in _first_choice(each)


def _of_stream(text: str) -> str | None:
    """Return the answer in the lines of a stream of events."""
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    pieces = [_loaded(line) for line in lines if line != "[DONE]"]
    return _joined([piece for piece in pieces if isinstance(piece, dict)])


def _joined(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the pieces of a streamed chat or completion."""
    found = []
    for piece in pieces:
        choice = _first_choice(piece)
        if str(choice.get("finish_reason")) in CUT:
            raise LeftOut(CUT_OFF, str(choice["finish_reason"]))
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if delta.get("tool_calls") or delta.get("function_call"):
            raise LeftOut(TOOLS)
        found.append(str(delta.get("content") or choice.get("text") or ""))
    return "".join(found)


def _first_choice(piece: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = piece.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
