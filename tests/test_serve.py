"""The server as its clients see it: a real process, the official openai package, and raw HTTP for the rest."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.prompt.tokens import prompt_tokens
from tests.served import TEMPLATE
from tests.serving import ASKED, CHATS, Server, ask, endless, full_chat, post, running


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs, tmp_path_factory.mktemp("server"), "--log-contents") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def mlx_answer(base: Base, adapter: Path | None, chat: list[Any], tokens: int) -> str:
    from mlx_lm.generate import generate_step

    model, tokenizer = load_base(base, adapter), base.tokenizer
    import mlx.core as mx

    prompt = prompt_tokens(chat, tokenizer)
    answer: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens):
        if int(token) == tokenizer.eos_token_id:
            break
        answer.append(int(token))
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_the_openai_client_gets_the_greedy_answer(client: openai.OpenAI, starter: Base, runs: list[Path]) -> None:
    for chat in CHATS:
        assert ask(client, "base", chat, max_tokens=24) == mlx_answer(starter, None, chat, 24)
    for name in ("colours", "lights", "melted"):
        adapter = runs[0].parent / f"adapter-{name}"
        assert ask(client, name, CHATS[0]) == mlx_answer(starter, adapter, CHATS[0], 12)
    assert len({ask(client, name, CHATS[0]) for name in ("colours", "lights", "melted", "base")}) == 4


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="colours", messages=CHATS[0], temperature=0, max_tokens=12, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == ask(client, "colours", CHATS[0])
    assert len(parts) > 2


def test_a_raw_prompt_is_completed(client: openai.OpenAI, starter: Base) -> None:
    tokenizer = starter.tokenizer
    prompt = tokenizer.apply_chat_template(CHATS[0], add_generation_prompt=True, tokenize=False)
    reply = client.completions.create(model="colours", prompt=prompt, temperature=0, max_tokens=12)
    assert reply.choices[0].text == ask(client, "colours", CHATS[0])
    stream = client.completions.create(model="colours", prompt=prompt, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == reply.choices[0].text


def test_a_request_has_exactly_one_bos(client: openai.OpenAI, starter: Base) -> None:
    tokenizer = starter.tokenizer
    for chat in CHATS:
        tokens = prompt_tokens(chat, tokenizer)
        assert tokens.count(tokenizer.bos_token_id) == 1
        reply = client.chat.completions.create(model="lights", messages=chat, max_tokens=1)
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == len(tokens)


def test_every_task_and_the_base_are_listed(client: openai.OpenAI, server: Server) -> None:
    names = ["colours", "lights", "melted", "base"]
    assert [model.id for model in client.models.list()] == names
    health = httpx.get(f"{server.url}/health").json()
    assert health == {"status": "ok", "models": names}


@pytest.mark.parametrize("stream", [False, True])
def test_an_old_caller_s_template_and_shots_are_stripped_and_counted(
    server: Server, client: openai.OpenAI, stream: bool
) -> None:
    body = {"model": "colours", "messages": full_chat("tell me red"), "temperature": 0, "max_tokens": 12}
    bare = post(server, {**body, "messages": ASKED})
    whole = post(server, {**body, "stream": stream})
    saved = int(whole.headers["x-pilocal-prompt-tokens-saved"])
    assert whole.headers["x-pilocal-arm"] == "internalized"
    assert whole.headers["x-pilocal-prompt-tokens"] == bare.headers["x-pilocal-prompt-tokens"]
    base = post(server, {**body, "model": "base"})
    assert saved == base.json()["usage"]["prompt_tokens"] - bare.json()["usage"]["prompt_tokens"] > 60
    if stream:
        events = [json.loads(line[6:]) for line in whole.text.splitlines() if line.startswith("data: {")]
        said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    else:
        said = whole.json()["choices"][0]["message"]["content"]
    assert said == bare.json()["choices"][0]["message"]["content"]
    assert bare.headers["x-pilocal-prompt-tokens-saved"] == "0"


def test_a_template_at_the_head_of_the_first_message_is_stripped_and_another_system_message_stays(
    server: Server,
) -> None:
    def saved(chat: list[dict[str, str]]) -> int:
        reply = post(server, {"model": "colours", "messages": chat, "max_tokens": 1})
        return int(reply.headers["x-pilocal-prompt-tokens-saved"])

    assert saved([{"role": "user", "content": f"{TEMPLATE}\n\ntell me red"}]) > 20
    assert saved([{"role": "system", "content": f"  {TEMPLATE}\n"}, *ASKED]) > 20
    assert saved([{"role": "system", "content": "Answer in French."}, *ASKED]) == 0
    assert saved([{"role": "user", "content": TEMPLATE}]) == 0


def test_a_header_sends_a_request_to_the_base_with_the_full_prompt(server: Server, client: openai.OpenAI) -> None:
    headers = {"X-Pilocal-Fallback": "full-prompt"}
    body = {"model": "colours", "messages": ASKED, "temperature": 0, "max_tokens": 12}
    reply = post(server, body, headers)
    assert reply.headers["x-pilocal-arm"] == "full-prompt"
    asked = server.entries[-1]["prompt"]
    assert asked[0] == {"role": "system", "content": TEMPLATE}
    assert [turn["role"] for turn in asked[1:]] == ["user", "assistant", "user", "assistant", "user"]
    assert asked[-1]["content"] == "tell me red"
    assert reply.json()["choices"][0]["message"]["content"] == ask(client, "base", asked)
    refused = post(server, {**body, "model": "base"}, headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_full_prompt")
    assert post(server, body, {"X-Pilocal-Fallback": "maybe"}).status_code == 400


def test_a_share_of_the_requests_goes_to_the_full_prompt_and_both_are_counted(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--fallback-share", 0.3) as server:
        body = {"messages": ASKED, "max_tokens": 1}
        arms = [post(server, body).headers["x-pilocal-arm"] for _ in range(40)]
        drawn = arms.count("full-prompt")
        assert 5 < drawn < 20
        text = httpx.get(f"{server.url}/metrics").text
        for arm, count in (("full-prompt", drawn), ("internalized", 40 - drawn)):
            assert f'pilocal_requests_total{{arm="{arm}",status="200",task="colours"}} {float(count)}' in text
        prompts = {entry["prompt_tokens"] for entry in server.entries if entry["arm"] == "full-prompt"}
        assert min(prompts) > 60
        assert "prompt" not in server.entries[0]
        assert "answer" not in server.entries[0]


def test_a_share_of_the_answers_is_compared_with_the_full_prompt_s(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--shadow-share", 1) as server:
        body = {"messages": ASKED, "max_tokens": 8, "temperature": 0}
        said = [post(server, body, headers) for headers in ({}, {"X-Pilocal-Fallback": "full-prompt"})]
        same = len({reply.json()["choices"][0]["message"]["content"].strip() for reply in said}) == 1
        for _ in range(3):
            post(server, {**body, "stream": True, "n": 2})
        wanted = f'pilocal_shadow_requests_total{{same="{str(same).lower()}",task="colours"}} 4.0'
        deadline = time.monotonic() + 60
        while wanted not in (text := httpx.get(f"{server.url}/metrics").text):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        assert len(server.entries) == 5  # it is nobody's request


def test_the_metrics_tell_tokens_and_times(server: Server, client: openai.OpenAI) -> None:
    def value(name: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        found = re.search(rf'^{name}{{arm="internalized",task="lights"}} (\S+)$', text, re.M)
        return float(found[1]) if found else 0.0

    names = ("prompt_tokens_total", "completion_tokens_total", "saved_tokens_total", "first_token_seconds_count")
    before = [value(f"pilocal_{name}") for name in names]
    reply = client.chat.completions.create(model="lights", messages=full_chat("tell me red"), max_tokens=5)
    assert reply.usage is not None
    entry = server.entries[-1]
    after = [value(f"pilocal_{name}") for name in names]
    change = [new - old for new, old in zip(after, before, strict=True)]
    assert change[:2] == [reply.usage.prompt_tokens, reply.usage.completion_tokens]
    assert change[2] > 60
    assert change[3] == 1
    assert 0 < entry["first_token_seconds"] <= entry["seconds"]
    assert (entry["task"], entry["arm"], entry["status"]) == ("lights", "internalized", 200)
    assert entry["answer"] == reply.choices[0].message.content


def test_an_unknown_model_is_a_404_that_names_the_known(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="This server has: colours, lights, melted, base") as caught:
        ask(client, "kitchen", ASKED)
    assert caught.value.code == "model_not_found"


def test_a_prompt_longer_than_the_context_is_a_400_that_says_so(client: openai.OpenAI) -> None:
    chat: list[Any] = [{"role": "user", "content": "word " * 600}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as caught:
        ask(client, "colours", chat)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not valid JSON"),
        (b'{"model": "colours", "messages": [], "temperature": NaN}', "not valid JSON"),
        ({"model": "colours"}, "at least one is needed"),
        ({"model": "colours", "messages": "hello"}, "messages"),
        ({"model": "colours", "messages": [3]}, "messages.0: must be an object"),
        ({"model": "colours", "messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role: must be one of"),
        ({"model": "colours", "messages": [{"role": "user", "content": {"a": 1}}]}, "must be text"),
        ({"model": "colours", "messages": ASKED, "max_tokens": "many"}, "max_tokens"),
        ({"model": "colours", "messages": ASKED, "temperature": 9}, "temperature: must be from 0 to 2"),
        ({"model": "colours", "messages": ASKED, "n": 17}, "n: must be from 1 to 16"),
        ({"model": "colours", "messages": ASKED, "grammer": "x"}, "grammer: this server does not do that"),
        ({"model": "colours", "messages": ASKED, "logit_bias": {"999999": 1}}, "Tokens are numbers from 0"),
        ({"messages": ASKED}, "model: name one"),
    ],
)
def test_a_request_that_is_wrong_is_a_400_in_openai_s_words(server: Server, body: Any, said: str) -> None:
    reply = post(server, body)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_body_of_ten_megabytes_is_a_413_and_the_server_goes_on(server: Server, client: openai.OpenAI) -> None:
    chat = [{"role": "user", "content": "x" * 10_000_000}]
    reply = post(server, {"model": "colours", "messages": chat})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert ask(client, "colours", CHATS[0])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/health", 405),
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/x", 404),
    ],
)
def test_what_the_server_does_not_have_is_told_in_openai_s_words(
    server: Server, method: str, path: str, status: int
) -> None:
    reply = httpx.request(method, server.url + path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_a_repetition_is_not_penalized(client: openai.OpenAI) -> None:
    """llama-cpp-python's own default, 1.1, must change nothing."""
    plain = ask(client, "base", CHATS[0], max_tokens=64)
    assert ask(client, "base", CHATS[0], max_tokens=64, extra_body={"repeat_penalty": 1.0}) == plain


def test_a_client_that_hangs_up_ends_its_answer_and_frees_the_queue(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--parallel", 1, "--queue", 0) as server:
        with endless(server):
            busy = post(server, {"messages": ASKED, "max_tokens": 1})
            assert busy.status_code == 429
            assert int(busy.headers["retry-after"]) >= 1
            assert busy.json()["error"]["code"] == "rate_limit_exceeded"
            with (
                openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
                pytest.raises(openai.RateLimitError),
            ):
                ask(client, "colours", ASKED)
        deadline = time.monotonic() + 60
        while (reply := post(server, {"messages": ASKED, "max_tokens": 1})).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert reply.status_code == 200
        left = next(entry for entry in server.entries if entry["status"] == 499)
        assert 0 < left["completion_tokens"] < 400


def test_those_in_line_are_answered_in_turn(server: Server, client: openai.OpenAI) -> None:
    alone = {name: ask(client, name, CHATS[0]) for name in ("colours", "lights", "melted", "base")}
    said: list[tuple[str, str]] = []

    def work(name: str) -> None:
        said.append((name, ask(client, name, CHATS[0])))

    threads = [threading.Thread(target=work, args=(name,)) for name in [*alone] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(said) == 12
    assert all(alone[name] == answer for name, answer in said)
