"""Requests to the Responses API, read: each is a chat, or is refused in the words that its client used."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from pilocal.server.refusal import Refusal
from pilocal.server.request import FIELDS, RESPONSES, ClientRequest, read_request
from pilocal.server.tool_family import HERMES

CODES = 'root ::= "ZOR"'
ASKED: list[Any] = [{"role": "user", "content": "tell me red"}]
TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}
    for name in ("dim", "shut_all")
]


def read(**body: Any) -> ClientRequest:
    return read_request(RESPONSES, json.dumps({"input": "x", **body}).encode(), 900, HERMES)


def refused(**body: Any) -> dict[str, Any]:
    with pytest.raises(Refusal) as caught:
        read(**body)
    assert caught.value.status == 400
    return dict(caught.value.body["error"])


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": None}, "input", "must be text, or a list"),
        ({"input": []}, "input", "must be text, or a list"),
        ({"input": 5}, "input", "must be text, or a list"),
        ({"input": [5]}, "input.0", "must be an object"),
        ({"input": [*ASKED, {"role": "tool", "content": "x"}]}, "input.1.role", "must be one of user"),
        ({"input": [{"role": "user"}]}, "input.0.content", "must be text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input.0.content.0.text", ""),
        ({"input": [{"role": "user", "content": "x", "name": "me"}]}, "input.0.name", "does not do that"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type", "must be one of message"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0.type", "must be one of message"),
        ({"input": [*ASKED, {"type": "function_call_output", "output": "x"}]}, "input.1.call_id", "the id of a call"),
        ({"instructions": ["x"]}, "instructions", "must be text"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps nothing"),
        ({"conversation": "conv_1"}, "conversation", "keeps nothing"),
        ({"store": True}, "store", "stores nothing"),
        ({"background": True}, "background", "must be false"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "logprobs"),
        ({"include": "x"}, "include", "must be a list"),
        ({"top_logprobs": 2}, "top_logprobs", "only where"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "does not do that"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"max_output_tokens": "5"}, "max_output_tokens", "whole number"),
        ({"max_tokens": 5}, "max_tokens", "does not do that"),
        ({"messages": ASKED}, "messages", "does not do that"),
        ({"response_format": {"type": "text"}}, "response_format", "does not do that"),
        ({"n": 2}, "n", "does not do that"),
        ({"metadata": {"a": 1}}, "metadata", "an object of texts"),
        ({"text": "json"}, "text", "must be an object"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "does not do that"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "must be an object whose type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "with a schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
            "text.format.schema",
            "not",
        ),
        ({"text": {"format": {"type": "json_object"}}, "grammar": CODES}, "grammar", "beside text.format"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "only where stream is true"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage", "not do that"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "there are no other tools"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name", "must be 1 to 64"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools.0.function", "does not do that"),
        ({"tools": [{**TOOLS[0], "parameters": {"type": "array"}}]}, "tools.0.parameters", "must be a JSON schema"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools.1.name", "another tool is called dim"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "shut"}}, "tool_choice", "no tool 'shut'"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice", "must be none"),
        ({"tool_choice": "required"}, "tool_choice", "only where there are tools"),
        ({"tools": [], "parallel_tool_calls": 1}, "parallel_tool_calls", "only where there are tools"),
        ({"model": 5}, "model", "must be text"),
    ],
)
def test_what_cannot_be_done_is_refused_in_the_client_s_own_words(body: Any, param: str, said: str) -> None:
    error = refused(**body)
    assert error["param"] == param
    assert said in error["message"]
    assert error["message"].startswith(f"{param}: ")


CALL = {"type": "function_call", "call_id": "call_1", "name": "dim", "arguments": "{}"}
OTHER = {**CALL, "id": "fc_2", "call_id": "call_2", "name": "shut_all"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
TEXT = {"role": "assistant", "content": "I do."}


@pytest.mark.parametrize(
    ("items", "where"),
    [
        ([*ASKED, CALL, *ASKED], "input.2"),
        ([*ASKED, CALL], "input"),
        ([*ASKED, CALL, OTHER, RESULT, TEXT], "input.4"),
        ([*ASKED, RESULT, CALL], "input.1.call_id"),
        ([*ASKED, CALL, RESULT, RESULT], "input.3.call_id"),
        ([*ASKED, CALL, {**RESULT, "call_id": None}], "input.2.call_id"),
        ([*ASKED, CALL, CALL, RESULT], "input.2.call_id"),
        ([*ASKED, CALL, {**OTHER, "arguments": "[]"}], "input.2.arguments"),
        ([*ASKED, TEXT, CALL, {**OTHER, "arguments": "{"}], "input.3.arguments"),
        ([*ASKED, {**CALL, "name": "a b"}], "input.1.name"),
        ([*ASKED, {**CALL, "arguments": {}}], "input.1.arguments"),
        ([*ASKED, {**CALL, "call_id": 5}], "input.1.call_id"),
        ([*ASKED, {**CALL, "output": "x"}], "input.1.output"),
        ([*ASKED, CALL, {**RESULT, "output": [{"type": "input_image"}]}], "input.2.output.0.type"),
    ],
)
@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_items_that_do_not_belong_together_are_refused_where_they_stand(
    items: Any, where: str, instructions: str | None
) -> None:
    error = refused(input=items, tools=TOOLS, instructions=instructions)
    assert error["message"].startswith(f"{where}: ")
    assert error["param"] == (where if "." in where[6:] else "input")
    assert "message of the role" not in error["message"]


@pytest.mark.parametrize(
    ("items", "chat"),
    [
        ([CALL, OTHER, RESULT, {**RESULT, "call_id": "call_2"}], [("", 2), "done", "done"]),
        ([CALL, RESULT, OTHER, {**RESULT, "call_id": "call_2"}], [("", 1), "done", ("", 1), "done"]),
        ([TEXT, CALL, RESULT, TEXT], [("I do.", 1), "done", "I do."]),
        ([CALL, TEXT, RESULT], [("I do.", 1), "done"]),
        ([TEXT, CALL, TEXT, RESULT], [("I do.I do.", 1), "done"]),
        ([TEXT, TEXT], ["I do.", "I do."]),
    ],
)
def test_what_an_assistant_did_in_one_turn_is_one_message(items: Any, chat: Any) -> None:
    found = read(input=[*ASKED, *items], tools=TOOLS).body["messages"][1:]
    assert [
        (message["content"], len(message["tool_calls"])) if "tool_calls" in message else message["content"]
        for message in found
    ] == chat


VALUES: list[Any] = [True, False, 0, 1, -1, 1.5, "", "x", [], ["x"], [[]], [{}], {}, {"type": "x"}, {"a": None}, CALL]
KEYS = ("type", "role", "content", "text", "format", "name", "call_id", "arguments", "output", "schema", "function")


def test_no_value_of_any_field_is_more_than_a_refusal() -> None:
    draw = Random(7)

    def value(depth: int) -> Any:
        if depth and draw.random() < 0.6:
            if draw.random() < 0.4:
                return [value(depth - 1) for _ in range(draw.randrange(3))]
            kinds = (
                "message",
                "function",
                "function_call",
                "function_call_output",
                "json_schema",
                "input_text",
                "user",
            )
            found = {key: value(depth - 1) for key in draw.sample(KEYS, draw.randrange(5))}
            return found | {key: draw.choice(kinds) for key in ("type", "role") if draw.random() < 0.7}
        return draw.choice(VALUES)

    refusals = 0
    for _ in range(3000):
        body = {name: value(3) for name in draw.sample(sorted(FIELDS[RESPONSES] - {"input"}), 2)}
        try:
            read(**body, input=value(4))
        except Refusal as refusal:
            refusals += 1
            assert refusal.status == 400
            assert refusal.body["error"]["message"]
    assert refusals > 1000
