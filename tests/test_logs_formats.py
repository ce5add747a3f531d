"""Every form of a log says the same, and what no task can carry is left out with its reason."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilocal.logs.exchange import (
    CUT_OFF,
    EMPTY_ANSWER,
    EMPTY_QUERY,
    FAILED,
    FORM,
    NO_ANSWER,
    NO_CONTENTS,
    NO_GENERATION,
    NOT_A_RECORD,
    PICTURES,
    TOOLS,
    UNKNOWN,
    UNLEARNED,
    Exchange,
    LeftOut,
)
from pilocal.logs.forms import exchange_of
from pilocal.logs.reading import read, read_columns
from pilocal.logs.sources import files_of
from pilocal.progress import silent
from pilocal.server.request_log import RequestLogEntry
from pilocal.task.json_lines import Line

SYSTEM, ASKED, ANSWER = "You are kind.\nAlways.", "Where is\nthe “key”?", "Under the mat."
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]
SAID = {"role": "assistant", "content": ANSWER}
RESPONSE = {
    "id": "c1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": SAID, "finish_reason": "stop"}],
}
CHUNKS = [
    {"object": "chat.completion.chunk", "choices": [{"delta": {"role": "assistant"}}]},
    {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "Under "}}]},
    {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "the mat."}, "finish_reason": "stop"}]},
]
EVENTS = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\n"
BODY = {"model": "m", "messages": CHAT, "temperature": 0}
PARTS = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": [{"type": "text", "text": ASKED}]}]
OWN = RequestLogEntry(
    time="2026-01-01T00:00:00.000+00:00",
    path="/v1/chat/completions",
    status=200,
    arm="base",
    prompt=CHAT,
    answer=ANSWER,
)

RECORDS: dict[str, Any] = {
    "OpenAI fine-tuning": {"messages": [*CHAT, SAID]},
    "OpenAI fine-tuning with weights": {"messages": [*CHAT, SAID | {"weight": 1}]},
    "parts of text": {"messages": [*PARTS, SAID]},
    "developer": {"messages": [{"role": "developer", "content": SYSTEM}, CHAT[1], SAID]},
    "system in two": {
        "messages": [{"role": "system", "content": "You are kind."}, {"role": "user", "content": ASKED}, SAID]
    },
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": SYSTEM},
            {"from": "human", "value": ASKED},
            {"from": "gpt", "value": ANSWER},
        ]
    },
    "preferences": {"input": {"messages": CHAT}, "preferred_output": [SAID], "non_preferred_output": []},
    "stored completion": BODY | RESPONSE,
    "proxy": {"request": BODY, "response": RESPONSE},
    "proxy with bodies": {
        "request": {"method": "POST", "url": "/v1/chat/completions", "body": BODY},
        "response": {"status_code": 200, "body": RESPONSE},
    },
    "proxy with texts": {"request_body": json.dumps(BODY), "response_body": json.dumps(RESPONSE)},
    "proxy with a stream": {"request": BODY, "response": EVENTS},
    "proxy with chunks": {"request": BODY, "response": CHUNKS},
    "Responses": {
        "request": {"instructions": SYSTEM, "input": ASKED},
        "response": {
            "object": "response",
            "status": "completed",
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
            ],
        },
    },
    "Responses with items": {
        "request": {
            "instructions": SYSTEM,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": ASKED}]}],
        },
        "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": ANSWER}]}]},
    },
    "Anthropic": {
        "request": {"system": SYSTEM, "messages": [CHAT[1]]},
        "response": {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": ANSWER}],
            "stop_reason": "end_turn",
        },
    },
    "Ollama": {"request": BODY, "response": {"message": SAID, "done": True, "done_reason": "stop"}},
    "LiteLLM": {
        "id": "x",
        "trace_id": "t",
        "call_type": "acompletion",
        "status": "success",
        "messages": CHAT,
        "response": RESPONSE,
        "model_parameters": {"temperature": 0},
    },
    "LiteLLM's answer alone": {"call_type": "completion", "status": "success", "messages": CHAT, "response": ANSWER},
    "LiteLLM's spend logs": {
        "request_id": "x",
        "status": "success",
        "messages": {},
        "response": RESPONSE,
        "proxy_server_request": BODY,
    },
    "LiteLLM's spend logs as text": {
        "request_id": "x",
        "messages": "{}",
        "response": json.dumps(RESPONSE),
        "proxy_server_request": json.dumps({"url": "u", "body": BODY}),
    },
    "Langfuse": {
        "id": "o",
        "traceId": "t",
        "type": "GENERATION",
        "level": "DEFAULT",
        "statusMessage": None,
        "input": CHAT,
        "output": SAID,
    },
    "Langfuse with a body": {"traceId": "t", "type": "GENERATION", "input": {"messages": CHAT}, "output": ANSWER},
    "Langfuse to a bucket": {
        "trace_id": "t",
        "type": "GENERATION",
        "input": json.dumps(CHAT),
        "output": json.dumps(SAID),
    },
    "pilocal": json.loads(OWN.json()),
}


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def rows(path: Path, columns: str = "") -> list[Exchange | LeftOut]:
    return [row for _, row in read(files_of([path]), read_columns(columns), silent, "")]


def one(path: Path, columns: str = "") -> Exchange:
    (row,) = rows(path, columns)
    assert isinstance(row, Exchange), (row.reason, row.detail)
    return row


@pytest.mark.parametrize("form", RECORDS)
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    row = one(write(tmp_path / "log.jsonl", RECORDS[form]))
    assert (row.turns, row.answer) == ((("user", ASKED),), ANSWER)
    assert row.system == (SYSTEM if form != "system in two" else "You are kind.")


TEXTS: dict[str, Any] = {
    "completion": {"request": {"prompt": ASKED}, "response": {"choices": [{"text": ANSWER, "finish_reason": "stop"}]}},
    "prompt and completion": {"prompt": ASKED, "completion": ANSWER},
    "query and answer": {"query": ASKED, "answer": ANSWER},
    "question and answer": {"question": ASKED, "answer": ANSWER},
    "input and output": {"input": ASKED, "output": ANSWER},
    "Alpaca": {"instruction": ASKED, "input": "", "output": ANSWER},
    "pilocal's completions": json.loads(OWN.json()) | {"path": "/v1/completions", "prompt": ASKED},
}


@pytest.mark.parametrize("form", TEXTS)
def test_forms_without_a_chat(form: str, tmp_path: Path) -> None:
    row = one(write(tmp_path / "log.jsonl", TEXTS[form]))
    assert (row.system, row.turns, row.answer) == ("", (("user", ASKED),), ANSWER)


def test_an_answer_in_json_stays_text(tmp_path: Path) -> None:
    text = '{"label": "spam", "choices": 3}'
    for record in ({"messages": CHAT, "response": text}, {"query": ASKED, "answer": text}):
        assert one(write(tmp_path / "log.jsonl", record)).answer == text
    row = one(write(tmp_path / "log.jsonl", {"input": CHAT, "output": {"label": "spam"}}))
    assert row.answer == '{"label": "spam"}'


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}]}

UNFIT: dict[str, tuple[Any, str]] = {
    "picture": ({"messages": [PICTURE, SAID]}, PICTURES),
    "picture to Responses": (
        {"request": {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "response": ANSWER},
        PICTURES,
    ),
    "call": ({"messages": [CHAT[1], CALL]}, TOOLS),
    "call earlier": ({"messages": [CHAT[1], CALL, {"role": "tool", "content": "1"}, SAID]}, TOOLS),
    "call in a response": ({"request": BODY, "response": {"choices": [{"message": CALL}]}}, TOOLS),
    "call in Anthropic's": (
        {"request": BODY, "response": {"role": "assistant", "content": [{"type": "tool_use"}]}},
        TOOLS,
    ),
    "call in Responses": ({"request": BODY, "response": {"output": [{"type": "function_call"}]}}, TOOLS),
    "cut off": ({"request": BODY, "response": {"choices": [{"message": SAID, "finish_reason": "length"}]}}, CUT_OFF),
    "cut off in Responses": (
        {
            "request": BODY,
            "response": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": []},
        },
        CUT_OFF,
    ),
    "no answer": ({"messages": CHAT}, NO_ANSWER),
    "empty answer": ({"messages": [*CHAT, SAID | {"content": " \n"}]}, EMPTY_ANSWER),
    "refusal": (
        {"messages": CHAT, "response": {"choices": [{"message": {"role": "assistant", "content": None}}]}},
        EMPTY_ANSWER,
    ),
    "empty query": ({"messages": [{"role": "user", "content": ""}, SAID]}, EMPTY_QUERY),
    "system alone": ({"messages": [CHAT[0], SAID]}, EMPTY_QUERY),
    "system between": ({"messages": [CHAT[1], SAID, CHAT[0], CHAT[1], SAID]}, FORM),
    "weight": ({"messages": [*CHAT, SAID | {"weight": 0}]}, UNLEARNED),
    "status": ({"request": BODY, "response": {"status_code": 429, "body": {"error": {"message": "slow"}}}}, FAILED),
    "error": ({"messages": CHAT, "response": {"error": {"message": "no"}}}, FAILED),
    "LiteLLM's failure": ({"messages": CHAT, "response": {}, "status": "failure", "error_str": "no"}, FAILED),
    "Langfuse's error": (
        {"traceId": "t", "type": "GENERATION", "level": "ERROR", "input": CHAT, "output": None},
        FAILED,
    ),
    "Langfuse's span": ({"traceId": "t", "type": "SPAN", "input": {"a": 1}, "output": {"b": 2}}, NO_GENERATION),
    "pilocal without contents": (
        json.loads(RequestLogEntry(time="", path="/v1/chat/completions", status=200, arm="base").json()),
        NO_CONTENTS,
    ),
    "pilocal's refusal": (json.loads(RequestLogEntry(time="", path="/v1/chat/completions", status=429).json()), FAILED),
    "embedding": ({"messages": CHAT, "response": {"object": "list", "data": [{"embedding": [0.1]}]}}, NO_ANSWER),
    "unknown": ({"time": 3, "message": "started"}, UNKNOWN),
    "list": ([1, 2], NOT_A_RECORD),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_no_task_can_carry_is_left_out_with_its_reason(what: str, tmp_path: Path) -> None:
    record, reason = UNFIT[what]
    path = write(tmp_path / "log.jsonl", {"query": "a", "answer": "b"}, record)
    found = rows(path)[-1]
    assert isinstance(found, LeftOut)
    assert found.reason == reason


ODD: list[Any] = [
    None, 5, 1.5, True, "", "x", "{bad", "[1]", '{"role": 5}', "data: 5\n", [], {}, [5], [[1]], [{}], [None], ["x"],
    {"a": 1}, {"content": 5}, {"type": ["x"]}, {"choices": [{}]}, {"choices": {"a": 1}}, [{"role": "a", "type": ["x"]}],
]  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if above:
        yield above
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*above, key))


def test_no_record_however_odd_is_more_than_left_out() -> None:
    draw = random.Random(0)
    forms = [*RECORDS.values(), *TEXTS.values(), *(record for record, _ in UNFIT.values())]
    left = 0
    for _ in range(3000):
        record = copy.deepcopy(draw.choice(forms))
        for _ in range(draw.randint(1, 3)):
            inner, path = record, draw.choice([*places(record)])
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = copy.deepcopy(draw.choice(ODD))
        try:
            exchange_of(record, Line(Path("log.jsonl"), 1), {})
        except LeftOut:
            left += 1
    assert 1000 < left < 3000
