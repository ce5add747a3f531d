"""The forms of logs: what each calls the request and the answer; every form is known by its looks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.logs.exchange import (
    BROKEN,
    EMPTY_ANSWER,
    EMPTY_QUERY,
    FAILED,
    FORM,
    NO_ANSWER,
    NO_CONTENTS,
    NO_GENERATION,
    NOT_A_RECORD,
    TOOLS,
    UNKNOWN,
    UNLEARNED,
    Exchange,
    LeftOut,
)
from pilocal.logs.messages import answer_of, merged, messages_of, text_of
from pilocal.task.formats import COLUMNS as GUESSED
from pilocal.task.json_lines import HALF, Line

QUERY, ANSWER, SYSTEM = COLUMNS = ("query", "answer", "system")
"""What columns may be named for."""

REQUESTS = ("request", "request_body", "requestBody", "proxy_server_request", "kwargs", "body", "input", "prompt")
RESPONSES = (
    "response",
    "response_body",
    "responseBody",
    "output",
    "completion",
    "answer",
    "preferred_output",
    "result",
)
"""Where a row has its request and its answer, the most telling first."""

BAD = ("failure", "failed", "error", "cancelled", "canceled", "timeout", "refused")
"""States of a request that was not answered."""

LOOSE = ("output", "completion", "answer", "result")
"""Where an object that is no response is the answer itself, written as JSON."""


def exchange_of(record: Any, where: Line, columns: Mapping[str, str]) -> Exchange:
    """Return what a record says; `columns` names its query, answer and system message, if the user did.

    Raises LeftOut for a row that no task can carry.
    """
    if not isinstance(record, dict):
        raise LeftOut(NOT_A_RECORD, type(record).__name__)
    _check_state(record)
    messages, said, answered = _named(record, columns) if columns else _found(record)
    if answered is None:
        messages, answered = _last_answer(messages)
    _check_tools(messages)
    system, turns = _sorted(merged(messages))
    if any(HALF.search(text) for text in (system, answered, *(text for _, text in turns))):
        raise LeftOut(BROKEN, "half a surrogate pair, which is no character")
    if not turns[-1][1].strip():
        raise LeftOut(EMPTY_QUERY)
    if not answered.strip():
        raise LeftOut(EMPTY_ANSWER)
    return Exchange(
        where=where, system=system, turns=turns, answer=_plain(answered), offered_tools=_offers(record, said)
    )


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")


def _check_state(record: Mapping[str, Any]) -> None:
    """Raise LeftOut for a request that was not answered, as LiteLLM, Langfuse, proxies and pilocal's server say it."""
    error = record.get("error") or record.get("error_str")
    if error:
        raise LeftOut(FAILED, str(error)[:100])
    for key in ("status", "status_code", "statusCode"):
        state = str(record.get(key, "")).lower()
        if state in BAD or (state.isdigit() and not 200 <= int(state) < 300):
            raise LeftOut(FAILED, f"{key} {state}")
    _check_traced(record)
    if {"path", "status", "arm", "prompt_tokens"} <= record.keys() and record.get("prompt") is None:
        raise LeftOut(NO_CONTENTS, "serve with --log-contents")


def _check_traced(record: Mapping[str, Any]) -> None:
    """Raise LeftOut for a step of Langfuse's that failed, or is no generation."""
    if record.get("level") == "ERROR":
        raise LeftOut(FAILED, str(record.get("statusMessage") or record.get("status_message") or "")[:100])
    if {"traceId", "trace_id"} & record.keys() and str(record.get("type", "GENERATION")).upper() != "GENERATION":
        raise LeftOut(NO_GENERATION, f"type {record['type']}")


def _named(record: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[Any], Any, str]:
    """Return the messages, the response and the answer of a row whose columns the user named."""
    missing = [name for name in columns.values() if name not in record]
    if missing:
        raise LeftOut(UNKNOWN, f"no column {missing[0]}")
    asked, said = (parsed(record[columns[key]]) for key in (QUERY, ANSWER))
    messages = messages_of(asked) if isinstance(asked, list | dict) else _user(record[columns[QUERY]])
    if SYSTEM in columns and record[columns[SYSTEM]]:
        messages = [{"role": "system", "content": str(record[columns[SYSTEM]])}, *messages]
    return messages, said, _answered(record[columns[ANSWER]], loose=True)


def _user(text: Any) -> list[Any]:
    return [{"role": "user", "content": "" if text is None else str(text)}]


def _answered(value: Any, *, loose: bool) -> str:
    """Return the answer that a value is or holds; where `loose`, an object of no known form is an answer in JSON."""
    found = answer_of(parsed(value))
    if found is not None:
        return found
    if isinstance(value, str):
        return value
    if value is None or not loose:
        raise LeftOut(NO_ANSWER)
    return json.dumps(value, ensure_ascii=False)


def parsed(value: Any) -> Any:
    """Return what a text of JSON holds, as tables and databases write requests; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _found(record: Mapping[str, Any]) -> tuple[list[Any], Any, str | None]:
    """Return the messages of a row, its response, and its answer; None where the answer is the last message."""
    asked = _request(record)
    key = next((key for key in RESPONSES if record.get(key) not in (None, {}, [])), "")
    response = record.get(key)
    if response is None and record.get("choices"):
        response = {"choices": record["choices"]}
    if asked is None:
        return _pair(record)
    return messages_of(asked), response, None if response is None else _answered(response, loose=key in LOOSE)


def _request(record: Mapping[str, Any]) -> Any:
    """Return the request of a row: messages, a text, or an object that holds either; None if there is none."""
    for key in ("messages", "conversations", "conversation"):
        found = parsed(record.get(key))
        if isinstance(found, list | dict) and found:
            return _with_system(record, found) if isinstance(found, list) else found
    for key in REQUESTS:
        found = parsed(record.get(key))
        if isinstance(found, dict):
            if messages_of(found):
                return found
        elif found and isinstance(found, str | list) and _is_asked(record, key):
            return _with_system(record, found)
    return None


def _with_system(record: Mapping[str, Any], asked: Any) -> Any:
    """Return what was asked with the system message that stands beside it, if there is one."""
    names = [name for name in ("system", "instructions") if isinstance(record.get(name), str) and record[name]]
    return {"input": asked} | {name: record[name] for name in names} if names else asked


def _is_asked(record: Mapping[str, Any], key: str) -> bool:
    """Tell whether a text under a key is what was asked: in Alpaca's records `input` only follows an instruction."""
    return key in ("input", "prompt", "body") and not (key == "input" and isinstance(record.get("instruction"), str))


def _pair(record: Mapping[str, Any]) -> tuple[list[Any], Any, str | None]:
    """Return the messages and the answer of a row of two texts under usual names."""
    record = {str(key).strip().lower(): value for key, value in record.items()}  # heads of tables are often capitalised
    names = ("instruction", *GUESSED[0])  # what Alpaca calls the input follows its instruction
    query = next((name for name in names if isinstance(record.get(name), str)), None)
    answer = next((name for name in GUESSED[1] if isinstance(record.get(name), str | int | float)), None)
    if query is None:
        raise LeftOut(UNKNOWN, f"its keys are {', '.join(list(map(str, record))[:8])}")
    if answer is None:
        raise LeftOut(NO_ANSWER)
    asked = record[query]
    if query == "instruction" and (more := record.get("input") or record.get("context")):
        asked = f"{asked}\n{more}"
    return messages_of(_with_system(record, str(asked))), None, str(record[answer])


def _last_answer(messages: Sequence[Any]) -> tuple[list[Any], str]:
    """Return the messages before the last answer, and the answer: a line of a fine-tuning file."""
    if not messages or not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise LeftOut(NO_ANSWER)
    last = messages[-1]
    if last.get("weight") == 0:
        raise LeftOut(UNLEARNED)
    if last.get("tool_calls") or last.get("function_call"):
        raise LeftOut(TOOLS)
    return list(messages[:-1]), text_of(last)


def _check_tools(messages: Sequence[Any]) -> None:
    for message in messages:
        called = isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call"))
        if called or (isinstance(message, dict) and message.get("role") in ("tool", "function", "ipython")):
            raise LeftOut(TOOLS)


def _sorted(turns: Sequence[tuple[str, str]]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the system message and the turns; raises LeftOut unless user and assistant take turns."""
    system = turns[0][1] if turns and turns[0][0] == "system" else ""
    rest = tuple(turns[1:] if turns and turns[0][0] == "system" else turns)
    roles = [role for role, _ in rest]
    if not roles or roles[-1] != "user":
        raise LeftOut(FORM if roles else EMPTY_QUERY, "it ends with the assistant's turn" if roles else "")
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise LeftOut(FORM, " ".join(roles)[:100])
    return system, rest


def _offers(record: Mapping[str, Any], response: Any) -> bool:
    """Tell whether a request offers tools."""
    inner = [parsed(record.get(key)) for key in (*REQUESTS, "model_parameters", "modelParameters", "optional_params")]
    outer = [each.get("body") for each in inner if isinstance(each, dict)]
    return any(
        isinstance(each, dict) and (each.get("tools") or each.get("functions")) for each in (record, *inner, *outer)
    )
