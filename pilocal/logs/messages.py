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
    if not isinstance(asked, dict):
        return []
    for key in ("body", "json", "data", "args", "kwargs"):
        inner = asked.get(key)
        if isinstance(inner, str) and inner.lstrip()[:1] == "{":
            inner = _loaded(inner)
        if isinstance(inner, dict) and (found := messages_of(inner)):
            return found
    for key in ("messages", "input", "prompt"):
        if asked.get(key) and (found := messages_of(asked[key])):
            system = [asked[name] for name in ("system", "instructions") if asked.get(name)]
            return [*({"role": "system", "content": text} for text in system), *found]
    return [asked] if "role" in asked and "content" in asked else []


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
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return str(content)
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in CALLS:
            raise LeftOut(TOOLS)
        if kind in SILENT:
            continue
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise LeftOut(EMPTY_ANSWER if kind == "refusal" else PICTURES, str(kind))
        parts.append(part["text"])
    return "".join(parts)


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
    if said.get("error"):
        raise LeftOut(FAILED, str(said["error"])[:100])
    for key in ("status_code", "statusCode"):
        if isinstance(said.get(key), int) and said[key] != 200:
            raise LeftOut(FAILED, f"{key} {said[key]}")
    if said.get("tool_calls") or said.get("function_call"):
        raise LeftOut(TOOLS)
    ends = [said.get(key) for key in ("finish_reason", "stop_reason", "done_reason")]
    ends += [(said.get("incomplete_details") or {}).get("reason")] if said.get("status") == "incomplete" else []
    if cut := next((end for end in ends if end in CUT), None):
        raise LeftOut(CUT_OFF, str(cut))
    return _of_body(said)


def _of_body(said: Mapping[str, Any]) -> str | None:
    """Return the answer in an object, by the keys of each interface."""
    if isinstance(said.get("choices"), list):
        if not said["choices"]:
            raise LeftOut(EMPTY_ANSWER)
        return answer_of(said["choices"][0])
    if isinstance(said.get("output"), list):
        return _of_items(said["output"])
    for key in ("body", "message", "delta", "json"):
        inner = said.get(key)
        inner = _loaded(inner) if isinstance(inner, str) and inner.lstrip()[:1] == "{" else inner
        if isinstance(inner, dict) and inner:
            return answer_of(inner)
        if isinstance(inner, str) and key == "body":
            return answer_of(inner) or inner
    if "content" in said and ("role" in said or "stop_reason" in said or said.get("type") == "message"):
        return text_of(said)
    texts = [said.get(key) for key in ("output_text", "completion", "generated_text")]
    texts += [said.get("text")] if {"text", "finish_reason"} <= said.keys() else []
    texts += [said.get("response")] if {"response", "done"} <= said.keys() else []
    return next((text for text in texts if isinstance(text, str)), None)


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
    if any(str(each.get("object", "")).endswith(".chunk") or "delta" in str(each.get("choices")) for each in said):
        return _joined(said)
    if all("role" in each or each.get("type") in ("message", *SILENT, *CALLS) for each in said):
        if any(each.get("type") in CALLS for each in said):
            raise LeftOut(TOOLS)
        return answer_of(said[-1])
    if all("text" in each for each in said):
        return _content(list(said))
    return None


def _of_stream(text: str) -> str | None:
    """Return the answer in the lines of a stream of events."""
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    pieces = [_loaded(line) for line in lines if line != "[DONE]"]
    return _joined([piece for piece in pieces if isinstance(piece, dict)])


def _joined(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the pieces of a streamed chat or completion."""
    found = []
    for piece in pieces:
        for choice in (piece.get("choices") or [])[:1]:
            if choice.get("finish_reason") in CUT:
                raise LeftOut(CUT_OFF, str(choice["finish_reason"]))
            delta = choice.get("delta") or {}
            if delta.get("tool_calls") or delta.get("function_call"):
                raise LeftOut(TOOLS)
            found.append(str(delta.get("content") or choice.get("text") or ""))
    return "".join(found)
