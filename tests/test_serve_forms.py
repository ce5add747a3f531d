"""Answers in a form, over HTTP: JSON schemas, grammars and calls of functions; a form that cannot be is a 400."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from pilocal.base.base import Base
from tests.served import make_run
from tests.serving import CHATS, Server, post, running
from tests.tiny import make_adapter
from tests.tool_layouts import LLAMA_TOOLS

jsonschema = pytest.importorskip("jsonschema")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "device": {"enum": ["lamp", "door"]},
        "level": {"type": "integer", "minimum": 0, "maximum": 10},
        "rooms": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["device", "level"],
    "additionalProperties": False,
}
CODES = 'root ::= ("ZOR" | "MIP" | "KEL")'
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": SCHEMA}}
    for name in ("dim", "open_all")
]
HOT: dict[str, Any] = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 200}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("forms")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    shipped = make_run(root / "house", starter, adapter, chat_template="chat_template.jinja")
    (shipped.folder / "chat_template.jinja").write_text(LLAMA_TOOLS)
    formed = make_run(root / "formed", starter, adapter, gguf=shipped.folder / shipped.base, grammar=CODES)
    with running([shipped.folder.parent, formed.folder.parent], root, "--context", 1500) as server:
        yield server


def test_a_task_s_own_form_holds_for_its_queries_unless_they_have_another(server: Server) -> None:
    asked: dict[str, Any] = {"model": "formed", "n": 8, "seed": 3}
    said = {choice["message"]["content"] for choice in answers(server, **asked)}
    assert said <= {"ZOR", "MIP", "KEL"}
    full = post(server, {"messages": CHATS[0], **HOT, **asked}, {"X-Pilocal-Fallback": "full-prompt"}).json()
    assert {choice["message"]["content"] for choice in full["choices"]} <= {"ZOR", "MIP", "KEL"}
    for choice in answers(server, **asked, **form("json_object")):
        assert choice["message"]["content"].startswith("{")
    free = {choice["message"]["content"] for choice in answers(server, **{**asked, "model": "base"})}
    assert not free & {"ZOR", "MIP", "KEL"}


def form(kind: str, schema: Any = None) -> dict[str, Any]:
    described = {} if schema is None else {"json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return {"response_format": {"type": kind, **described}}


def answers(server: Server, **more: Any) -> list[dict[str, Any]]:
    reply = post(server, {"model": "house", "messages": CHATS[0], **HOT, **more})
    assert reply.status_code == 200, reply.text
    return list(reply.json()["choices"])


def test_every_answer_fits_its_schema_however_it_is_drawn(server: Server) -> None:
    for seed in range(4):
        for choice in answers(server, n=8, seed=seed, **form("json_schema", SCHEMA)):
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_an_answer_is_a_json_object_or_its_beginning(server: Server) -> None:
    for choice in answers(server, n=8, seed=1, **form("json_object")):
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)


def test_a_grammar_holds_for_chats_and_raw_prompts_in_one_batch_with_free_answers(server: Server) -> None:
    grammar = 'root ::= ("ZOR" | "MIP") (" " [0-9])*  "."'
    for choice in answers(server, n=8, seed=1, grammar=grammar):
        assert re.fullmatch(r"(ZOR|MIP)( \d)*\.", choice["message"]["content"])
    body = {"model": "house", "prompt": "red", "grammar": grammar, **HOT, "n": 4}
    for choice in post(server, body, path="completions").json()["choices"]:
        assert re.fullmatch(r"(ZOR|MIP)( \d)*\.", choice["text"])


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "open_all"}}], ids=["required", "named"]
)
def test_an_answer_that_must_call_does_whole_and_streamed(server: Server, choice: Any) -> None:
    asked: Any = {"messages": CHATS[0], "tools": TOOLS, "tool_choice": choice, "model": "house", "seed": 4}
    asked |= {"temperature": 1.5, "max_tokens": 300, "parallel_tool_calls": False}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        (whole,) = client.chat.completions.create(**asked).choices
        parts = list(client.chat.completions.create(**asked, stream=True))
    assert whole.finish_reason == "tool_calls"
    calls = whole.message.tool_calls or []
    assert len(calls) == 1
    call = calls[0]
    assert call.type == "function"
    assert call.function.name in (("dim", "open_all") if choice == "required" else ("open_all",))
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    said = [each for part in parts for each in part.choices[0].delta.tool_calls or ()]
    assert (said[0].id, said[0].function.name if said[0].function else "") == (call.id, call.function.name)
    streamed = "".join(each.function.arguments or "" for each in said if each.function)
    assert streamed == call.function.arguments
    assert parts[-1].choices[0].finish_reason == "tool_calls"


def test_tools_may_be_left_alone_and_results_come_back(server: Server) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "dim", "arguments": '{"device": "lamp"}'}}
    turns = [
        *CHATS[0],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    for more in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}, {"tools": strict}):
        reply = post(server, {"model": "house", "messages": turns, "max_tokens": 8, "tools": TOOLS, **more})
        assert reply.status_code == 200, reply.text
    asked = {"model": "house", "messages": CHATS[0], "tools": TOOLS, "max_tokens": 1}
    shown, hidden = (post(server, {**asked, "tool_choice": choice}).json()["usage"] for choice in ("auto", "none"))
    assert shown["prompt_tokens"] > 100 + hidden["prompt_tokens"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (form("xml"), "response_format: must be an object whose type is one of text, json_object, json_schema"),
        ({"response_format": "json"}, "response_format: must be an object"),
        (form("json_schema"), "response_format.json_schema: must be an object with a schema"),
        (form("json_schema", {"type": "object", "multipleOf": 3}), "multipleOf"),
        ({"grammar": "root ::= root"}, "grammar: "),
        ({"grammar": "root ::= missing"}, "missing"),
        ({"grammar": ""}, "grammar: "),
        ({"grammar": 5}, "grammar: must be text"),
        ({"grammar": 'root ::= "a"', **form("json_object")}, "an answer has one form"),
        ({"tools": TOOLS, **form("json_object")}, "an answer has one form"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "dim"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "shut"}}}, "shut"),
        ({"functions": []}, "tools"),
    ],
)
def test_a_form_that_cannot_be_is_refused_and_the_server_goes_on(server: Server, more: Any, said: str) -> None:
    reply = post(server, {"model": "house", "messages": CHATS[0], **more})
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
    assert post(server, {"model": "house", "messages": CHATS[0], "max_tokens": 1}).status_code == 200


def test_a_schema_that_is_too_large_or_deep_is_refused_quickly(server: Server) -> None:
    deep: Any = {"type": "string"}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(30_000)}}
    for schema in (deep, wide):
        reply = post(server, {"model": "house", "messages": CHATS[0], **form("json_schema", schema)})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_schema")
