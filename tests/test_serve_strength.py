"""A request that gives the strength of the adapter which answers it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import TEMPLATE
from tests.serving import ASKED, Server, full_chat, post, running

HEADER = "X-Pilocal-Adapter-Scale"


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs, tmp_path_factory.mktemp("server"), "--fallback-share", "1") as server:
        yield server


def said(server: Server, strength: str | None, *, model: str = "colours", messages: list[Any] = ASKED) -> Any:
    headers = {} if strength is None else {HEADER: strength}
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}
    return post(server, body, headers)


def text(reply: Any) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_nothing_of_an_adapter_is_the_base_and_every_strength_is_told(server: Server) -> None:
    """The server would choose the full prompt for every request: where a strength is given, it does not."""
    base = text(said(server, None, model="base"))
    replies = {strength: said(server, strength) for strength in ("0", "1", "2.0", "1e0", ".5")}
    assert text(replies["0"]) == base != text(replies["1"])
    assert text(replies["1e0"]) == text(replies["1"])
    assert [reply.headers[HEADER] for reply in replies.values()] == ["0.0", "1.0", "2.0", "1.0", "0.5"]
    assert {reply.headers["X-Pilocal-Arm"] for reply in replies.values()} == {"internalized"}
    assert [entry.get("adapter_scale") for entry in server.entries[-6:]] == [None, 0.0, 1.0, 2.0, 1.0, 0.5]
    plain = said(server, None)
    assert plain.headers["X-Pilocal-Arm"] == "full-prompt"
    assert HEADER not in plain.headers


def test_old_callers_and_raw_prompts_may_give_a_strength(server: Server) -> None:
    assert text(said(server, "0.5", messages=full_chat("tell me red"))) == text(said(server, "0.5"))
    body = {"model": "colours", "prompt": "red", "temperature": 0, "max_tokens": 8}
    replies = [post(server, body, {HEADER: strength}, path="completions") for strength in ("0", "2")]
    texts = [reply.json()["choices"][0]["text"] for reply in replies]
    assert texts[0] == post(server, body | {"model": "base"}, path="completions").json()["choices"][0]["text"]
    assert texts[0] != texts[1]


def test_a_changed_template_is_answered_by_the_base_which_has_no_strength(server: Server) -> None:
    changed = [{"role": "system", "content": TEMPLATE.replace("ZOR", "ZOD")}, *ASKED]
    reply = said(server, "0.5", messages=changed)
    assert reply.headers["X-Pilocal-Arm"] == "full-prompt"
    assert HEADER not in reply.headers


@pytest.mark.parametrize("given", ["", "-0.1", "2.01", "nan", "inf", "half", "0,5", "0x1", "1_0", "0.5, 1", "1e99"])
def test_a_strength_that_is_none_is_refused_in_one_line(server: Server, given: str) -> None:
    reply = said(server, given)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["message"], error["code"]) == (f"{HEADER}: must be a number from 0 to 2.", "invalid_adapter_scale")


def test_a_strength_that_is_given_twice_is_none(server: Server) -> None:
    headers = [(HEADER, "0.5"), (HEADER, "0.5")]
    reply = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": ASKED, "model": "colours"}, headers=headers
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_adapter_scale")


@pytest.mark.parametrize(
    ("model", "headers", "why"),
    [
        ("melted", {}, "the weights of melted are fused with the base."),
        ("base", {}, "the bare base has no adapter; name a task."),
        ("lights", {"X-Pilocal-Fallback": "full-prompt"}, "the base answers the full prompt, without an adapter."),
    ],
)
def test_a_strength_where_no_adapter_answers_is_refused(
    server: Server, model: str, headers: dict[str, str], why: str
) -> None:
    reply = post(server, {"model": model, "messages": ASKED}, headers | {HEADER: "0.5"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == f"{HEADER}: {why}"
    assert server.entries[-1]["error"] == "no_adapter_scale"
