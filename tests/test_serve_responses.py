"""The Responses API, with the official client and over HTTP: what the chat endpoint does holds here as well."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from pilocal.base.base import Base
from tests.served import TEMPLATE, make_run
from tests.serving import ASKED, CHATS, Server, full_chat, post, running
from tests.tiny import make_adapter
from tests.tool_layouts import LLAMA_TOOLS

jsonschema = pytest.importorskip("jsonschema")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"device": {"enum": ["lamp", "door"]}, "level": {"type": "integer", "minimum": 0, "maximum": 10}},
    "required": ["device", "level"],
    "additionalProperties": False,
}
CODES = 'root ::= ("ZOR" | "MIP" | "KEL")'
TOOLS: list[Any] = [
    {"type": "function", "name": name, "description": name, "parameters": SCHEMA} for name in ("dim", "open_all")
]
QUERY = CHATS[0][0]["content"]
HOT: dict[str, Any] = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0}


class Command(BaseModel):
    """An answer, as the client describes it with a class."""

    device: Literal["lamp", "door"]
    level: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("responses")
    adapter = make_adapter(root / "adapter", starter, rank=4, scale=2.0)
    shipped = make_run(root / "house", starter, adapter, chat_template="chat_template.jinja")
    (shipped.folder / "chat_template.jinja").write_text(LLAMA_TOOLS)
    formed = make_run(root / "formed", starter, adapter, gguf=shipped.folder / shipped.base, grammar=CODES)
    with running([shipped.folder.parent, formed.folder.parent], root, "--context", 1500, "--log-contents") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(server: Server, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return post(server, {"model": "house", "temperature": 0, **body}, headers, path="responses")


def answered(server: Server, **body: Any) -> dict[str, Any]:
    reply = ask(server, **body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    Response.model_validate(found)
    return found


def said(response: dict[str, Any]) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    return str(part["text"])


def chat(server: Server, messages: list[Any], **more: Any) -> Any:
    reply = post(server, {"model": "house", "temperature": 0, "messages": messages, **more})
    assert reply.status_code == 200, reply.text
    return reply


def events(reply: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, each checked to be named and numbered."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    *blocks, rest = reply.text.split("\n\n")
    assert rest == ""
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (name, number) == (f"event: {event['type']}", event["sequence_number"])
        found.append(event)
    return found


def arguments_told(stream: list[dict[str, Any]], number: int) -> list[str]:
    """Return the arguments of a call in a stream: as it begins, its pieces joined, and twice as it ends."""
    own = [event for event in stream if event.get("output_index") == number]
    pieces = [event["delta"] for event in own if event["type"] == "response.function_call_arguments.delta"]
    (arguments,) = (event["arguments"] for event in own if event["type"] == "response.function_call_arguments.done")
    first, last = (event["item"]["arguments"] for event in own if "item" in event)
    return [first, "".join(pieces), arguments, last]


def without_ids(value: Any) -> Any:
    """Return a response without what is new in each."""
    if isinstance(value, list):
        return [without_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    times = ("id", "created_at", "completed_at", "item_id", "input_tokens_details")
    return {key: without_ids(each) for key, each in value.items() if key not in times}


def test_the_client_gets_what_the_chat_says_whole_and_streamed(server: Server, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "house", "input": QUERY, "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    expected = chat(server, CHATS[0], max_tokens=12).json()
    assert whole.output_text == expected["choices"][0]["message"]["content"] != ""
    assert whole.usage is not None
    assert whole.usage.input_tokens == expected["usage"]["prompt_tokens"]
    assert whole.usage.output_tokens == expected["usage"]["completion_tokens"]
    parts = list(client.responses.create(**asked, stream=True))
    assert "".join(part.delta for part in parts if part.type == "response.output_text.delta") == whole.output_text
    last = parts[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == whole.output_text
    with client.responses.stream(**asked) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                assert whole.output_text.startswith(event.snapshot)


ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"max_output_tokens": 6}, "incomplete"),
        ({"model": "formed"}, "completed"),
        ({"model": "formed", "stop": ["Z", "M", "K"]}, "completed"),
    ],
)
def test_the_events_of_a_stream_come_in_openai_s_order_and_add_up_to_the_whole(
    server: Server, more: Any, status: str
) -> None:
    body: dict[str, Any] = {"input": QUERY, "metadata": {"who": "me"}, **more}
    whole, stream = answered(server, **body), events(ask(server, **body, stream=True))
    kinds = [event["type"] for event in stream]
    wanted = [*(ORDER if said(whole) else [kind for kind in ORDER if "delta" not in kind]), f"response.{status}"]
    assert [kind for number, kind in enumerate(kinds) if kind not in kinds[:number]] == wanted
    assert without_ids(stream[-1]["response"]) == without_ids(whole)
    assert whole["status"] == whole["output"][0]["status"] == status
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    assert whole["incomplete_details"] == reason
    assert (stream[0]["response"]["status"], stream[0]["response"]["output"]) == ("in_progress", [])
    assert stream[0]["response"]["id"] == stream[-1]["response"]["id"]
    (item,) = stream[-1]["response"]["output"]
    assert {event["item_id"] for event in stream if "item_id" in event} == {item["id"]}
    assert "".join(event["delta"] for event in stream if "delta" in event) == said(whole)
    assert whole["metadata"] == {"who": "me"}
    assert whole["store"] is False


def test_messages_instructions_and_parts_are_a_chat(server: Server) -> None:
    parts = [{"type": "input_text", "text": "tell "}, {"type": "input_text", "text": "me red"}]
    before = [{"type": "output_text", "text": "yes", "annotations": []}]
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "hello"},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": before},
        {"role": "user", "content": parts, "type": "message"},
    ]
    found = answered(server, input=items, instructions="Be brief.", max_output_tokens=8)
    turns = [("system", "Be brief."), ("user", "hello"), ("assistant", "yes"), ("user", "tell me red")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = chat(server, messages, max_tokens=8).json()
    assert said(found) == expected["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]
    assert found["instructions"] == "Be brief."
    assert [entry["prompt"] for entry in server.entries[-2:]] == [messages, messages]
    items[0]["role"] = "developer"
    assert answered(server, input=items, max_output_tokens=1)["usage"]["input_tokens"] > 0
    assert server.entries[-1]["prompt"][0] == {"role": "system", "content": "hello"}


@pytest.mark.parametrize("where", ["instructions", "system", "developer", "head"])
def test_the_template_is_stripped_wherever_a_caller_sends_it(server: Server, where: str) -> None:
    body: dict[str, Any] = {"input": [*ASKED], "max_output_tokens": 8}
    if where == "instructions":
        body["instructions"] = TEMPLATE
    elif where == "head":
        body["input"] = f"{TEMPLATE}\n\ntell me red"
    else:
        body["input"] = [{"role": where, "content": TEMPLATE}, *full_chat("tell me red")[1:]]
    reply, bare = ask(server, **body), ask(server, input="tell me red", max_output_tokens=8)
    assert said(reply.json()) == said(bare.json())
    assert reply.headers["x-pilocal-arm"] == "internalized"
    assert int(reply.headers["x-pilocal-prompt-tokens-saved"]) > 20
    assert reply.json()["usage"]["input_tokens"] == bare.json()["usage"]["input_tokens"]
    entry = server.entries[-2]
    assert (entry["path"], entry["task"], entry["status"]) == ("/v1/responses", "house", 200)
    assert entry["prompt"] == ASKED
    assert entry["answer"] == said(reply.json())
    assert entry["saved_tokens"] == int(reply.headers["x-pilocal-prompt-tokens-saved"])


def test_a_changed_template_the_full_prompt_and_a_strength_go_where_a_chat_s_go(server: Server) -> None:
    for body, headers in (
        ([{"role": "system", "content": TEMPLATE.replace("MIP", "MOP")}, *ASKED], {}),
        (ASKED, {"X-Pilocal-Fallback": "full-prompt"}),
        (ASKED, {"X-Pilocal-Adapter-Scale": "0.5"}),
        (ASKED, {"X-Pilocal-Adapter-Scale": "0"}),
    ):
        reply = ask(server, headers, input=body, max_output_tokens=8)
        other = post(server, {"model": "house", "messages": body, "temperature": 0, "max_tokens": 8}, headers)
        assert said(reply.json()) == other.json()["choices"][0]["message"]["content"]
        for name in ("arm", "prompt-tokens", "task", "prompt-tokens-saved", "adapter-scale"):
            assert reply.headers.get(f"x-pilocal-{name}") == other.headers.get(f"x-pilocal-{name}")
        entries = server.entries[-2:]
        assert entries[0]["near_miss"] == entries[1]["near_miss"] == ("MOP" in str(body))
    refused = ask(server, {"X-Pilocal-Adapter-Scale": "3"}, input=QUERY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_adapter_scale")


def test_a_task_s_own_form_holds_and_a_request_s_own_takes_its_place(server: Server, client: openai.OpenAI) -> None:
    for seed in range(6):
        assert said(answered(server, model="formed", input=QUERY, seed=seed, **HOT)) in ("ZOR", "MIP", "KEL")
        format = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
        found = answered(server, model="formed", input=QUERY, seed=seed, **HOT, text={"format": format})
        jsonschema.validate(json.loads(said(found)), SCHEMA)
        assert found["text"]["format"] == format
        assert said(answered(server, input=QUERY, seed=seed, grammar=CODES, **HOT)) in ("ZOR", "MIP", "KEL")
    parsed = client.responses.parse(model="house", input=QUERY, text_format=Command, temperature=0).output_parsed
    assert parsed is not None
    assert parsed.device in ("lamp", "door")
    format = {"type": "json_object"}
    assert said(answered(server, input=QUERY, max_output_tokens=20, text={"format": format})).startswith("{")
    free = answered(server, input=QUERY, max_output_tokens=4, text={"format": {"type": "text"}})
    assert said(free) == said(answered(server, input=QUERY, max_output_tokens=4))


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "open_all"}], ids=["required", "named"])
def test_calls_of_functions_whole_and_streamed(server: Server, client: openai.OpenAI, choice: Any) -> None:
    body: dict[str, Any] = {"input": QUERY, "tools": [{**tool, "strict": True} for tool in TOOLS]}
    body |= {"tool_choice": choice, "seed": 4, "temperature": 1.5, "max_output_tokens": 300}
    whole = answered(server, **body)
    calls = whole["output"]
    assert {call["type"] for call in calls} == {"function_call"}
    for call in calls:
        assert call["name"] in (("dim", "open_all") if choice == "required" else ("open_all",))
        jsonschema.validate(json.loads(call["arguments"]), SCHEMA)
    stream = events(ask(server, **body, stream=True))
    assert without_ids(stream[-1]["response"]) == without_ids(whole)
    for number, call in enumerate(calls):
        assert arguments_told(stream, number) == ["", call["arguments"], call["arguments"], call["arguments"]]


@pytest.mark.parametrize("parallel", [False, True])
def test_results_of_calls_come_back_as_the_items_that_they_were(
    server: Server, client: openai.OpenAI, parallel: bool
) -> None:
    body: dict[str, Any] = {"input": QUERY, "tools": TOOLS, "tool_choice": "required", "seed": 4}
    calls = answered(server, **body, parallel_tool_calls=parallel, temperature=1.5, max_output_tokens=300)["output"]
    assert parallel or len(calls) == 1
    results: list[Any] = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "done"} for call in calls
    ]
    turns: list[Any] = [*ASKED, *calls, *results]
    more = client.responses.create(model="house", input=turns, tools=TOOLS, max_output_tokens=4)
    assert more.usage is not None
    roles = [message["role"] for message in server.entries[-1]["prompt"]]
    assert roles == ["user", *["assistant", "tool"] * len(calls)]  # Llama's template takes one call a message
    named = more.tools[0]
    assert (named.type, more.tool_choice) == ("function", "auto")


def test_what_clients_send_without_tools_says_nothing(server: Server) -> None:
    more: dict[str, Any] = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "include": []}
    more |= {"background": False, "truncation": "disabled", "store": False, "previous_response_id": None}
    more |= {"user": "me", "top_logprobs": 0}
    plain = answered(server, input=QUERY, max_output_tokens=4)
    assert said(answered(server, input=QUERY, max_output_tokens=4, **more)) == said(plain)


def test_likelihoods_are_the_chat_s(server: Server) -> None:
    body: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    found = answered(server, input=QUERY, max_output_tokens=6, **body)
    expected = chat(server, CHATS[0], max_tokens=6, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]
    (item,) = found["output"]
    stream = events(ask(server, input=QUERY, max_output_tokens=6, stream=True, **body))
    streamed = [one for event in stream if event["type"] == "response.output_text.delta" for one in event["logprobs"]]
    for told in (item["content"][0]["logprobs"], streamed):
        assert [one["token"] for one in told] == [one["token"] for one in expected["content"]]
        assert [len(one["top_logprobs"]) for one in told] == [3] * len(told)
        for one, other in zip(told, expected["content"], strict=True):
            assert one["bytes"] == other["bytes"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)


def test_cached_tokens_are_those_that_were_read_before(server: Server) -> None:
    items = [{"role": "user", "content": "a question that nobody else has asked of this server " * 3}]
    first, again = (answered(server, input=items, max_output_tokens=1)["usage"] for _ in range(2))
    assert again["input_tokens_details"]["cached_tokens"] == again["input_tokens"] - 1
    assert first["input_tokens_details"]["cached_tokens"] < first["input_tokens"] // 2
    assert sum(first["input_tokens_details"].values()) == first["input_tokens"]


def test_a_refusal_comes_in_the_client_s_own_words(server: Server) -> None:
    for body, status, param in (
        ({"model": "nobody"}, 404, "model"),
        ({"input": "word " * 1600}, 400, "input"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"messages": ASKED}, 400, "messages"),
        ({"tools": [{"type": "web_search"}]}, 400, "tools.0.type"),
    ):
        reply = ask(server, **{"input": QUERY, **body})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error"), error
        assert "in the messages" not in error["message"]
        assert server.entries[-1]["error"] == error["code"]


def test_a_client_that_hangs_up_amid_a_stream_frees_its_place_and_is_logged(server: Server) -> None:
    body = {"model": "house", "input": QUERY, "stream": True, "temperature": 0}
    body |= {"logit_bias": {str(token): -100 for token in (2041, 2045, 2046)}}  # the ends of an answer
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as stream:
        assert next(stream.iter_lines()) == "event: response.created"
    for _ in range(20):
        if server.entries[-1]["status"] == 499:
            break
    assert (server.entries[-1]["path"], server.entries[-1]["status"]) == ("/v1/responses", 499)
    assert ask(server, input=QUERY, max_output_tokens=1).status_code == 200


def test_requests_are_counted_like_chats(server: Server) -> None:
    name = 'pilocal_requests_total{arm="internalized",status="200",task="formed"}'

    def count() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = count()
    answered(server, model="formed", input=QUERY)
    assert server.entries[-1]["task"] == "formed"
    assert count() == before + 1


def test_nothing_is_kept_and_nothing_can_be_fetched(server: Server) -> None:
    found = answered(server, input=QUERY, max_output_tokens=1)
    assert httpx.get(f"{server.url}/v1/responses/{found['id']}").status_code == 404
    reply = httpx.get(f"{server.url}/v1/responses")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_a_share_of_the_answers_is_shadowed(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--shadow-share", 1) as server:
        assert ask(server, model="colours", input=QUERY, max_output_tokens=4).status_code == 200
        for _ in range(100):
            if "pilocal_shadow_requests_total{" in httpx.get(f"{server.url}/metrics").text:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("no answer was compared")
