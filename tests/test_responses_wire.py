"""How an answer is told in the words of the Responses API, where no server can be made to say it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.responses import Response

from pilocal.errors import RunError
from pilocal.server.refusal import server_error
from pilocal.server.reply import Reply
from pilocal.server.responses_wire import ResponsesWire


def test_a_stream_that_fails_ends_with_the_event_for_it() -> None:
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    tokenizer: Any = None  # it says nothing of how likely tokens are
    wire = ResponsesWire(model="house", prompt_tokens=3, tokenizer=tokenizer, sent={})

    async def parts() -> AsyncIterator[bytes]:
        for part in wire.begin(1):
            yield part
        yield wire.part(0, {"content": "so far"}, None)
        raise RunError("the engine", "it failed")

    async def answer() -> None:
        reply = Reply(send)
        with pytest.raises(RunError):
            await reply.stream(parts(), wire.failed)
        await reply.refuse(server_error("The server failed; its log says why."))

    asyncio.run(answer())
    found = [json.loads(line[6:]) for line in b"".join(sent).decode().splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found[-2:]] == ["response.output_text.delta", "response.failed"]
    response = found[-1]["response"]
    Response.model_validate(response)
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["output"][0]["content"][0]["text"] == "so far"


def test_text_and_calls_are_items_of_their_own_and_the_last_may_be_cut_off() -> None:
    tokenizer: Any = None
    wire = ResponsesWire(model="house", prompt_tokens=3, tokenizer=tokenizer, sent={})
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "dim", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a'}}
    deltas: list[dict[str, Any]] = [{"content": "a"}, {"content": "b"}, {"tool_calls": [call]}, {"tool_calls": [more]}]
    parts = [*wire.begin(1), *(wire.part(0, delta, None) for delta in deltas), wire.last(0, "length")]
    found = [json.loads(line[6:]) for line in b"".join(parts).decode().splitlines() if line.startswith("data: ")]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert [(item["type"], item["status"]) for item in done] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]
    assert (done[0]["content"][0]["text"], done[1]["arguments"], done[1]["call_id"]) == ("ab", '{"a', "call_1")
