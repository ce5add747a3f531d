from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from pilocal.base import load_base, load_tokenizer
from pilocal.errors import InputError, ModelError
from pilocal.export.fused import export_fused
from pilocal.serve.server import make_app, serve

CHATS = [
    [{"role": "user", "content": "turn on the kitchen light"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 12 + 30? 😀\n"}],
    [{"role": role, "content": f"{role} <|eot_id|>"} for role in ("user", "assistant", "user")],
]


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Path:
    return export_fused(starter, None, tmp_path_factory.mktemp("export") / "starter.gguf", "f16")


@contextmanager
def running(gguf: Path, log: Path) -> Iterator[Server]:
    """The real server, warnings shown, in an environment that would mislead llama-cpp-python's own settings."""
    port = free_port()
    options = {"alias": "smart-home", "host": "127.0.0.1", "port": port, "context": 512, "threads": 1}
    code = f"from pathlib import Path; from pilocal.serve.server import serve; serve(Path({str(gguf)!r}), **{options})"
    misleading = {"N_CTX": "8", "CHAT_FORMAT": "chatml", "API_KEY": "secret", "LORA_PATH": "/nowhere"}
    # llama-cpp-python leaves one end of each stream and a /dev/null to the garbage collector: no harm, no warning.
    warnings = ["-W", "always", "-W", "ignore::ResourceWarning"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *warnings, "-c", code],
            stdout=output,
            stderr=output,
            env={**os.environ, **misleading},
            cwd=Path(__file__).parent.parent,
        )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}/v1", process)
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gguf: Path) -> Iterator[Server]:
    with running(gguf, tmp_path_factory.mktemp("log") / "server.txt") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def mlx_answer(base: Path, chat: list[Any], tokens: int) -> str:
    from mlx_lm.generate import generate_step

    model, tokenizer = load_base(base), load_tokenizer(base)
    import mlx.core as mx

    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=tokens):
        if int(token) == tokenizer.eos_token_id:
            break
        answer.append(int(token))
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_the_openai_client_gets_the_greedy_answer(client: openai.OpenAI, starter: Path) -> None:
    for chat in CHATS:
        reply = client.chat.completions.create(model="smart-home", messages=chat, temperature=0, max_tokens=24)
        assert reply.choices[0].message.content == mlx_answer(starter, chat, 24)
        assert reply.model == "smart-home"


def test_a_stream_says_the_same(client: openai.OpenAI, starter: Path) -> None:
    stream = client.chat.completions.create(
        model="smart-home", messages=CHATS[0], temperature=0, max_tokens=24, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == mlx_answer(starter, CHATS[0], 24)
    assert len(parts) > 2


def test_a_request_has_exactly_one_bos(client: openai.OpenAI, starter: Path) -> None:
    tokenizer = load_tokenizer(starter)
    for chat in CHATS:
        tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert tokens.count(tokenizer.bos_token_id) == 1
        reply = client.chat.completions.create(model="smart-home", messages=chat, max_tokens=1)
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == len(tokens)


def test_the_model_is_listed_under_its_alias(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smart-home"]


def test_a_prompt_longer_than_the_context_is_a_400_that_says_so(client: openai.OpenAI) -> None:
    chat: list[Any] = [{"role": "user", "content": "word " * 600}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens"):
        client.chat.completions.create(model="smart-home", messages=chat, max_tokens=4)


def test_a_repetition_is_not_penalized(client: openai.OpenAI) -> None:
    """llama-cpp-python's own default, 1.1, must change nothing."""

    def answer(**extra: float) -> str | None:
        reply = client.chat.completions.create(
            model="smart-home", messages=CHATS[0], temperature=0, max_tokens=64, extra_body=extra
        )
        return reply.choices[0].message.content

    assert answer() == answer(repeat_penalty=1.0)


def test_a_taken_port_is_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InputError, match=rf"^127\.0\.0\.1:{port}: cannot listen there: .*in use; choose another"):
            serve(tmp_path / "none.gguf", alias="a", host="127.0.0.1", port=port, context=512, threads=None)


def test_an_unknown_host_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"256\.0\.0\.1:80: cannot listen there"):
        serve(tmp_path / "none.gguf", alias="a", host="256.0.0.1", port=80, context=512, threads=None)


def test_a_file_that_llama_cpp_cannot_load_is_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        make_app(tmp_path / "none.gguf", alias="a", context=512, threads=None)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it"):
        make_app(cut, alias="a", context=512, threads=None)


def test_a_settings_file_from_the_environment_is_refused(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIG_FILE", "/etc/other.json")
    with pytest.raises(InputError, match="CONFIG_FILE"):
        make_app(gguf, alias="a", context=512, threads=None)


def test_an_interrupted_server_ends_and_has_warned_of_nothing(gguf: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with running(gguf, log) as server, openai.OpenAI(base_url=server.url, api_key="none") as client:
        client.chat.completions.create(model="smart-home", messages=CHATS[0], max_tokens=1)
        with client.chat.completions.create(model="x", messages=CHATS[0], max_tokens=8, stream=True) as stream:
            next(stream)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == -signal.SIGINT
    text = log.read_text()
    assert "Application shutdown complete" in text
    assert text.rstrip().endswith("\nKeyboardInterrupt")
    assert "Warning" not in text
