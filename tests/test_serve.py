"""The server as its clients see it: a real process, the official openai package, and raw HTTP for the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import httpx
import openai
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import Faults, InputError, ModelError
from pilocal.prompt.tokens import DATE_STRING
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.server import ServeOptions, serve
from pilocal.server.app import make_app
from pilocal.server.server import listen
from tests.served import EXAMPLES, TEMPLATE, make_run
from tests.tiny import make_adapter

ROOT = Path(__file__).parent.parent
CONTEXT = 512
CHATS = [
    [{"role": "user", "content": "turn on the kitchen light"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 12 + 30? 😀\n"}],
    [{"role": role, "content": f"{role} <|eot_id|>"} for role in ("user", "assistant", "user")],
]
ASKED = [{"role": "user", "content": "tell me red"}]
KEY = "a-key-for-the-tests"


@dataclass
class Server:
    """A server process that has loaded its models."""

    url: str
    process: subprocess.Popen[str]
    log: Path
    said: Path

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The request log, a moment later: a request is counted and logged once its answer is on the way."""
        time.sleep(0.5)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running(runs: list[Path], folder: Path, *options: object) -> Iterator[Server]:
    """`pilocal serve`, warnings shown, in an environment that would mislead llama-cpp-python's own settings."""
    log, said = folder / "log.jsonl", folder / "said.txt"
    misleading = {"N_CTX": "8", "CHAT_FORMAT": "chatml", "API_KEY": "secret", "LORA_PATH": "/nowhere"}
    # llama-cpp-python leaves one end of each stream and a /dev/null to the garbage collector: no harm, no warning.
    flags = ["-W", "always", "-W", "ignore::ResourceWarning"]
    command = [*flags, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", *runs]
    command += ["--port", 0, "--context", CONTEXT, "--threads", 1, "--log", log, *options]
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **misleading},
            cwd=ROOT,
        )
    assert process.stderr is not None
    rest = threading.Thread()
    try:
        for line in process.stderr:
            if found := re.search(r"serving .* at (http://\S+)/v1;", line):
                break
        else:
            raise AssertionError("the server ended")
        rest = threading.Thread(target=keep, args=(process.stderr, said))
        rest.start()
        yield Server(found[1], process, log, said)
    finally:
        process.kill()
        process.wait(20)
        if rest.ident:
            rest.join(20)
        process.stderr.close()


def keep(lines: IO[str], path: Path) -> None:
    with path.open("a") as file:
        for line in lines:
            file.write(line)
            file.flush()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> list[Path]:
    """Two tasks with an adapter each on the starter, and one that is fused."""
    root = tmp_path_factory.mktemp("runs")
    made: list[Shipped] = []
    for seed, name in enumerate(("colours", "lights", "melted")):
        adapter = make_adapter(root / f"adapter-{name}", starter, rank=4, scale=2.0, seed=seed)
        gguf = made[0].folder / made[0].base if made else None
        made.append(make_run(root / name, starter, adapter, gguf=gguf, fused=name == "melted"))
    return [shipped.folder.parent for shipped in made]


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

    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens):
        if int(token) == tokenizer.eos_token_id:
            break
        answer.append(int(token))
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def ask(client: openai.OpenAI, model: str, chat: list[Any], **more: Any) -> str:
    reply = client.chat.completions.create(model=model, messages=chat, temperature=0, **{"max_tokens": 12, **more})
    return reply.choices[0].message.content or ""


def post(server: Server, body: Any, headers: dict[str, str] | None = None, path: str = "chat/completions") -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/v1/{path}", content=content, headers=headers, timeout=60)


def full_chat(query: str) -> list[dict[str, str]]:
    """What an old caller sends: the template, two solved examples, and the query."""
    turns = [("system", TEMPLATE)]
    turns += [turn for each in EXAMPLES[:2] for turn in (("user", each.query), ("assistant", each.answer))]
    return [{"role": role, "content": content} for role, content in (*turns, ("user", query))]


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
        tokens = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False, date_string=DATE_STRING
        )
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
        ({"model": "colours", "messages": ASKED, "n": 3}, "a request gets one answer"),
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
        ("POST", "/v1/embeddings", 404),
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


def endless(server: Server, model: str = "base") -> socket.socket:
    """Ask for a long stream and return the connection once its first part is there."""
    body = {"model": model, "messages": CHATS[0], "temperature": 0, "stream": True, "max_tokens": 400}
    body |= {"logit_bias": {str(token): -100 for token in (2041, 2045, 2046)}}  # the ends of an answer
    content = json.dumps(body).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    assert b"200 OK" in connection.recv(4096)
    while b"data: " not in (part := connection.recv(4096)):
        assert part, "the server hung up"
    return connection


def test_a_client_that_hangs_up_ends_its_answer_and_frees_the_queue(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path, "--queue", 0) as server:
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


def test_with_a_key_nothing_but_page_and_health_is_open(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    with running(runs[:1], tmp_path, "--host", "0.0.0.0", "--api-key-file", file) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                ask(client, "colours", ASKED)
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            assert ask(client, "colours", CHATS[0])
        assert [httpx.get(url + path).status_code for path in ("/", "/health", "/metrics")] == [200, 200, 401]


def test_the_port_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    def start(host: str, port: int) -> None:
        serve([], ServeOptions(host=host, port=port))

    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"^127\.0\.0\.1:{port}: cannot listen there: .*in use; choose another"):
            start("127.0.0.1", port)
    with pytest.raises(InputError, match=r"256\.0\.0\.1:80: cannot listen there"):
        start("256.0.0.1", 80)
    with pytest.raises(InputError, match=r"^--host 0\.0\.0\.0: others can reach .* no API key; give --api-key-file"):
        start("0.0.0.0", 0)


def test_no_part_of_an_answer_waits_for_another_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0, loopback_only=True) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_files_that_cannot_be_served_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", *map(str, arguments)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "nothing was exported here yet" in said(tmp_path)
    assert "has the same name" in said(runs[0], runs[0], "--port", 0)
    assert "--log-contents needs --log" in said(runs[0], "--log-contents")


SECRET = "sesame-4711-schlüssel"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (SECRET.encode(), "an API key is plain ASCII text on one line"),
        (SECRET.encode("latin-1"), "an API key is plain ASCII text on one line"),
        (b"sesame-4711\nsesame-4712\n", "an API key is plain ASCII text on one line"),
        (b"sesame\x004711", "an API key is plain ASCII text on one line"),
        (b"\n \n", "the file is empty"),
        (b"", "the file is empty"),
    ],
)
def test_a_key_file_that_is_refused_is_told_without_its_key(
    content: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        serve([tmp_path], ServeOptions(api_key_file=file))
    assert str(caught.value).startswith(f"{file}: {problem}; ")
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__) + str(capsys.readouterr())
    assert not re.search("sesame|471|schl", shown)


def test_a_key_given_in_place_of_its_file_is_not_repeated(runs: list[Path]) -> None:
    for key in (SECRET, "sesame-" * 100, f"{SECRET}/{SECRET}"):
        command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", "serve", str(runs[0])]
        done = subprocess.run(
            [*command, "--api-key-file", key], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 1
        assert done.stderr.startswith("--api-key-file: ")
        assert not re.search("sesame|471|schl", done.stdout + done.stderr)


def test_a_server_with_a_key_never_prints_it(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    handshake = {
        "Authorization": f"Bearer {KEY}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    with running(runs[:1], tmp_path, "--log-contents", "--api-key-file", file) as server:
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}-not"}, {}, handshake):
            post(server, {"messages": ASKED, "max_tokens": 1}, headers)
            httpx.get(f"{server.url}/{KEY}?key={KEY}", headers=headers)
        post(server, b"{", {"Authorization": f"Bearer {KEY}"})
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"Bearer {KEY}\r\n\r\n".encode())
            connection.recv(4096)
        metrics = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        assert metrics.status_code == 200
        assert len(server.entries) == 5
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
        assert KEY not in metrics.text
    assert KEY not in server.said.read_text() + server.log.read_text()


def test_the_server_that_is_extended_is_the_one_it_was_written_for() -> None:
    """serve/llama_server.py uses private names of llama_cpp.server."""
    written_for, installed = "0.3", version("llama-cpp-python")
    assert installed.startswith(f"{written_for}."), (
        f"pilocal/server/llama_server.py was written for llama-cpp-python {written_for}, and {installed} is installed: "
        "compare its use of llama_cpp.server with that version, then change this test and the cap in pyproject.toml"
    )


def test_options_out_of_their_bounds_are_all_told() -> None:
    with pytest.raises(Faults) as caught:
        ServeOptions(port=-1, context=0, threads=0, queue=-1, fallback_share=1.5)
    assert [fault.where for fault in caught.value.faults] == ["port", "context", "threads", "queue", "fallback_share"]


def test_a_program_serves_runs_with_one_call(runs: list[Path]) -> None:
    code = f"""
import sys
from pathlib import Path
from pilocal.server import ServeOptions, serve

def ready(names, port):
    print(*names, port, flush=True)

serve([Path({str(runs[0])!r})], ServeOptions(port=0, context=256), ready=ready, log=lambda entry: print(entry.json()))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            name, port = process.stdout.readline().split()
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": ASKED, "max_tokens": 1}, timeout=60
            )
            assert (name, reply.status_code) == ("colours", 200)
            assert json.loads(process.stdout.readline())["task"] == "colours"
        finally:
            process.kill()


def test_a_model_that_needs_more_than_there_is_is_refused(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [read_shipped(runs[0])]
    monkeypatch.setenv("CONFIG_FILE", "/etc/other.json")
    with pytest.raises(InputError, match="CONFIG_FILE"):
        make_app(tasks, ServeOptions(), None, lambda entry: None)
    monkeypatch.delenv("CONFIG_FILE")
    with pytest.raises(
        ModelError,
        match=r"llama\.cpp refuses the file: insufficient memory.*; export it again, or ask for a smaller context",
    ):
        make_app(tasks, ServeOptions(context=1 << 26), None, lambda entry: None)


def test_an_interrupted_server_ends_and_has_warned_of_nothing(runs: list[Path], tmp_path: Path) -> None:
    with running(runs[:1], tmp_path) as server:
        post(server, {"messages": ASKED, "max_tokens": 1})
        with endless(server):
            pass
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
    text = server.said.read_text()
    assert "Traceback" not in text
    assert "Warning" not in text
