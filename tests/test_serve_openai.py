"""What OpenAI's API does with odd requests, and at the end of a stream; and near misses as a client sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.served import TEMPLATE
from tests.serving import ASKED, CONTEXT, Server, full_chat, post, running

USAGE: Any = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs[:1], tmp_path_factory.mktemp("server"), "--log-contents") as server:
        yield server


def parts(reply: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(stream: list[Any]) -> tuple[str, str]:
    """Return a stream's text, and why it ended; how the text is cut depends on who is faster."""
    choices = [part["choices"][0] for part in stream]
    said = "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return said, choices[-1]["finish_reason"]


@pytest.mark.parametrize("more", [{"max_tokens": 4}, {"max_tokens": 60}, {"max_tokens": 60, "stop": ["e", "o"]}])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": full_chat("red")}),
        ("chat/completions", {"model": "base", "messages": ASKED}),
        ("completions", {"prompt": "red"}),
    ],
)
def test_a_stream_ends_with_its_usage_when_that_is_asked_for(server: Server, path: str, asked: Any, more: Any) -> None:
    body = {**asked, **more, "temperature": 0}
    whole = post(server, body, path=path).json()
    *said, last = parts(post(server, {**body, **USAGE}, path=path))
    assert last["usage"] == whole["usage"]
    assert last["choices"] == []
    assert all(part["usage"] is None and part["choices"] for part in said)
    assert {part["id"] for part in (*said, last)} == {last["id"]}
    assert last["object"] == said[0]["object"]
    plain = parts(post(server, {**body, "stream": True}, path=path))
    assert joined(plain) == joined(said)
    assert not any("usage" in part for part in plain)


def test_the_openai_client_reads_the_usage(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="colours", messages=ASKED, max_tokens=4, **USAGE)
        *_, last = list(stream)
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 4


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -2, "at least 1"),
        ("max_tokens", 1.5, "a whole number"),
        ("max_tokens", "5", "a whole number"),
        ("max_tokens", True, "a whole number"),
        ("n", 0, "from 1 to 16"),
        ("n", 17, "from 1 to 16"),
        ("temperature", "0.5", "a number"),
        ("temperature", [], "a number"),
        ("temperature", -0.1, "from 0 to 2"),
        ("temperature", 10**400, "from 0 to 2"),
        ("top_p", 1.1, "from 0 to 1"),
        ("top_p", -1, "from 0 to 1"),
        ("presence_penalty", 3, "from -2 to 2"),
        ("frequency_penalty", "nan", "a number"),
        ("seed", 2**63, "from"),
        ("seed", "x", "a whole number"),
        ("top_k", 2**40, "from 0"),
        ("stop", list("abcde"), "at most 4"),
        ("stop", [3], "text"),
        ("stop", {"a": 1}, "text"),
        ("stream", "yes", "true or false"),
        ("stream", 1, "true or false"),
        ("logit_bias", {"5": "nan"}, "-100 to 100"),
        ("logit_bias", 5, "logit_bias"),
        ("stream_options", {"include_usage": True}, "only where stream is true"),
        ("user", 5, "user"),
        ("model", ["colours"], "model"),
    ],
)
def test_an_odd_value_is_a_400_that_names_its_field(
    server: Server, path: str, field: str, value: Any, said: str
) -> None:
    asked: Any = {"messages": ASKED} if path.startswith("chat") else {"prompt": "red"}
    body = {**asked, field: value}
    reply = post(server, body, path=path)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"].split(".")[0] in (field, "max_tokens")
    assert said in error["message"]


@pytest.mark.parametrize("options", ["x", 5, [], {"include_usage": "yes"}, {"include_usage": 1}])
def test_stream_options_are_an_object(server: Server, options: Any) -> None:
    reply = post(server, {"messages": ASKED, "stream": True, "stream_options": options})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize(
    "more",
    [
        {"stop": None},
        {"stop": []},
        {"stop": list("wxyz")},
        {"n": 1, "top_p": 1, "temperature": 0, "seed": -1, "max_tokens": 3.0},
        {"stream_options": None, "max_tokens": None, "max_completion_tokens": 2},
        {"stream": False, "temperature": None},
    ],
)
def test_what_openai_takes_is_taken(server: Server, more: Any) -> None:
    assert post(server, {"messages": ASKED, "max_tokens": 2, **more}).status_code == 200


def near_misses(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("pilocal_near_misses_total{"))


@pytest.mark.parametrize("headers", [{}, {"X-Pilocal-Fallback": "full-prompt"}])
def test_a_changed_template_is_answered_by_the_base_as_it_was_sent(server: Server, headers: dict[str, str]) -> None:
    chat = full_chat("tell me red")
    chat[0]["content"] = TEMPLATE.replace("MIP", "MOP")
    body = {"messages": chat, "temperature": 0, "max_tokens": 12}
    before = near_misses(server)
    reply = post(server, {"model": "colours", **body}, headers)
    base = post(server, {"model": "base", **body}).json()
    assert (reply.headers["x-pilocal-arm"], reply.headers["x-pilocal-prompt-tokens-saved"]) == ("full-prompt", "0")
    assert reply.json()["choices"] == base["choices"]
    assert reply.json()["usage"] == base["usage"]
    entry = server.entries[-2]
    assert (entry["arm"], entry["near_miss"], entry["prompt"]) == ("full-prompt", True, chat)
    assert server.entries[-1]["near_miss"] is False
    assert near_misses(server) == before + 1


def test_a_changed_template_that_does_not_fit_is_refused(server: Server) -> None:
    chat = [{"role": "system", "content": TEMPLATE.replace("MIP", "MOP")}]
    long = {"role": "user", "content": "word " * (CONTEXT - 30)}
    reply = post(server, {"messages": [*chat, long]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert post(server, {"messages": [long], "max_tokens": 1}).headers["x-pilocal-arm"] == "internalized"


@pytest.mark.parametrize(
    "form", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text.replace("\n", " \n\n")]
)
def test_a_template_in_another_form_is_stripped_and_what_was_added_stays(server: Server, form: Any) -> None:
    chat = full_chat("tell me red")
    chat[0]["content"] = f"{form(TEMPLATE)}\nToday is Monday."
    reply = post(server, {"messages": chat, "max_tokens": 1})
    assert reply.headers["x-pilocal-arm"] == "internalized"
    assert int(reply.headers["x-pilocal-prompt-tokens-saved"]) > 60
    assert server.entries[-1]["prompt"] == [{"role": "system", "content": "Today is Monday."}, *ASKED]


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("MIP", "MOP")])
def test_a_raw_prompt_with_a_template_is_answered_by_the_base(server: Server, template: str) -> None:
    body = {"prompt": f"{template}\n\nred:", "temperature": 0, "max_tokens": 8}
    reply = post(server, body, path="completions")
    assert reply.headers["x-pilocal-arm"] == "full-prompt"
    assert reply.json()["choices"] == post(server, {**body, "model": "base"}, path="completions").json()["choices"]
    assert post(server, {**body, "prompt": "red:"}, path="completions").headers["x-pilocal-arm"] == "internalized"
