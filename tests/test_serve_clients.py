"""What clients of other servers send by habit: fields that say nothing, paths that are nearly right, packed bodies."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving import ASKED, Server, post, running

PLAIN: dict[str, Any] = {"messages": ASKED, "max_tokens": 8, "temperature": 0}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs[:1], tmp_path_factory.mktemp("server")) as server:
        yield server


def said(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tool_choice": "none"},
        {"stop": ""},
        {"stop": []},
        {"stop": ["", "\u2603"]},
    ],
)
def test_a_field_that_says_nothing_changes_nothing(server: Server, more: dict[str, Any]) -> None:
    assert said(post(server, {**PLAIN, **more})) == said(post(server, PLAIN))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_of_minus_one_is_none(server: Server, name: str) -> None:
    asked = {"messages": ASKED, "temperature": 0, "stop": ["e"]}
    assert said(post(server, {**asked, name: -1})) == said(post(server, asked))
    assert post(server, {**asked, name: -2}).status_code == 400


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "dim"}}])
def test_a_call_that_is_asked_for_without_tools_is_refused(server: Server, choice: Any) -> None:
    reply = post(server, {**PLAIN, "tools": [], "tool_choice": choice})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize("path", [f"{CHAT}/", f"/{CHAT}", "/v1//chat/completions"])
def test_a_stroke_too_many_in_a_path_is_none(server: Server, path: str) -> None:
    assert said(httpx.post(f"{server.url}{path}", json=PLAIN, timeout=60)) == said(post(server, PLAIN))


@pytest.mark.parametrize("path", [f"/v1{CHAT}", "/chat/completions", f"/api{CHAT}"])
def test_a_path_that_is_nearly_right_says_where_it_is(server: Server, path: str) -> None:
    reply = httpx.post(f"{server.url}{path}", json=PLAIN, timeout=60)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 404
    assert message == f"There is nothing at {path}. It is at {CHAT}: the base URL of a client ends with one /v1."


def test_one_model_is_found_by_its_name(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        listed = list(client.models.list())
        assert [client.models.retrieve(model.id) for model in listed] == listed
        with pytest.raises(openai.NotFoundError, match="The model 'other' does not exist"):
            client.models.retrieve("other")


def test_a_packed_body_is_refused_as_one(server: Server) -> None:
    body, headers = gzip.compress(json.dumps(PLAIN).encode()), {"Content-Encoding": "gzip"}
    reply = httpx.post(f"{server.url}{CHAT}", content=body, headers=headers, timeout=60)
    assert reply.status_code == 415
    assert "Content-Encoding: gzip is not unpacked here" in reply.json()["error"]["message"]


def test_the_whole_address_in_the_request_line_is_understood(server: Server) -> None:
    """As clients send it through a proxy (RFC 9112, 3.2.2)."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as talk:
        talk.sendall(f"GET {server.url}/health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        assert talk.makefile("rb").readline().split()[1] == b"200"
