"""What OpenAI's clients ask for beside the text: several answers, seeds, stops, likelihoods, and the prompt back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import CHATS, Server, post, running


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs[:1], tmp_path_factory.mktemp("server")) as server:
        yield server


def asked(server: Server, **more: Any) -> dict[str, Any]:
    reply = post(server, {"messages": CHATS[0], "temperature": 0, "max_tokens": 12, **more})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def texts(found: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in found["choices"]] == list(range(len(found["choices"])))
    return [choice["message"]["content"] for choice in found["choices"]]


def streamed(server: Server, **more: Any) -> list[dict[str, Any]]:
    body = {"messages": CHATS[0], "temperature": 0, "max_tokens": 12, "stream": True, **more}
    lines = post(server, body).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_several_greedy_answers_are_the_same_and_counted_together(server: Server) -> None:
    one, three = asked(server), asked(server, n=3)
    assert texts(three) == texts(one) * 3
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    parts = streamed(server, n=3)
    for index in range(3):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == texts(one)[0]
        assert own[-1]["finish_reason"] == one["choices"][0]["finish_reason"]


def test_a_seed_reproduces_and_tells_answers_apart(server: Server) -> None:
    hot = {"temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "n": 4}
    first, again, other = (texts(asked(server, seed=seed, **hot)) for seed in (5, 5, 6))
    assert first == again
    assert len({*first, *other}) == 8


def test_an_answer_ends_before_its_stop(server: Server) -> None:
    (whole,) = texts(asked(server))
    for begin in range(1, len(whole) - 1):
        stop = whole[begin : begin + 2]
        found = asked(server, stop=["never said", stop])
        assert texts(found) == [whole[: whole.find(stop)]]
        assert found["choices"][0]["finish_reason"] == "stop"


def test_likelihoods_are_those_of_the_tokens(server: Server) -> None:
    found = asked(server, logprobs=True, top_logprobs=4)
    content = found["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == texts(found)[0]
    assert len(content) == found["usage"]["completion_tokens"]
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        others = one["top_logprobs"]
        assert len(others) == 4
        assert (others[0]["token"], others[0]["logprob"]) == (one["token"], one["logprob"])  # greedy
        assert sum(math.exp(other["logprob"]) for other in others) <= 1 + 1e-6
        assert [other["logprob"] for other in others] == sorted((o["logprob"] for o in others), reverse=True)
    told = [one for part in streamed(server, logprobs=True, top_logprobs=4) for one in
            (part["choices"][0].get("logprobs") or {"content": []})["content"]]  # fmt: skip
    assert told == content
    assert asked(server, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert asked(server)["choices"][0]["logprobs"] is None


def test_a_raw_prompt_comes_back_with_its_answer_and_likelihoods(server: Server) -> None:
    body = {"prompt": "the colour red", "temperature": 0, "max_tokens": 5}
    plain = post(server, body, path="completions").json()["choices"][0]
    found = post(server, {**body, "echo": True, "logprobs": 2}, path="completions").json()["choices"][0]
    assert found["text"] == "the colour red" + plain["text"]
    assert "".join(found["logprobs"]["tokens"]) == plain["text"]
    assert all(len(others) == 2 for others in found["logprobs"]["top_logprobs"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"top_logprobs": 3}, "top_logprobs: only where logprobs is true"),
        ({"logprobs": 3}, "logprobs: must be true or false"),
        ({"store": True}, "store: this server stores nothing"),
        ({"audio": {}}, "audio: this server does not do that"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Server, more: Any, said: str) -> None:
    reply = post(server, {"messages": CHATS[0], **more})
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]
