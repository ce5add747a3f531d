"""The Responses API, with the official client and over HTTP: what the chat endpoint does holds here as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from pilocal.base.base import Base
from tests.served import TEMPLATE, make_run
from tests.serving import ASKED, CHATS, CONTEXT, Server, full_chat, post, running
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
