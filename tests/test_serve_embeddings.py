"""Embeddings of the bare base, beside the answers: as llama.cpp makes them, and nobody's answer changes."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray

from pilocal.errors import RunError
from pilocal.llamacpp.context import EMBEDDED
from pilocal.llamacpp.embedder import Embedder
from pilocal.llamacpp.model import Model
from tests.serving import CHATS, CONTEXT, Server, post, running

LONG = "turn on the kitchen light and then tell me what is on in the living room; " * 18
TEXTS = ["turn on the kitchen light", "what is 12 + 30? 😀", " <|eot_id|> \n", LONG]
Vectors = NDArray[np.float32]


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs, tmp_path_factory.mktemp("server"), "--log-contents") as server:
        yield server


@pytest.fixture(scope="module")
def gguf(runs: list[Path]) -> Path:
    return runs[0] / "export" / "base-f16.gguf"


@pytest.fixture(scope="module")
def expected(gguf: Path) -> Vectors:
    """llama.cpp's own mean pooling, normalized, each text whole in one batch of a fresh context."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(gguf),
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        n_ctx=CONTEXT,
        n_batch=CONTEXT,
        n_ubatch=CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    found = [model.embed(text, normalize=True, truncate=False) for text in TEXTS]
    model.close()
    return np.array(found, dtype=np.float32)


def embed(server: Server, **body: Any) -> Any:
    return post(server, {"model": "base", **body}, path="embeddings")


def vectors(server: Server, texts: Any) -> Vectors:
    reply = embed(server, input=texts)
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    return np.array([each["embedding"] for each in data], dtype=np.float32)


def test_embeddings_are_llama_cpp_s_mean_pooling(server: Server, expected: Vectors) -> None:
    found = vectors(server, TEXTS)
    assert found.shape == expected.shape
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(found, expected, atol=2e-4)
    with httpx.Client(base_url=server.url) as client:
        count = client.post("/v1/embeddings", json={"model": "base", "input": LONG}).json()["usage"]["prompt_tokens"]
    assert count > 2 * EMBEDDED  # in slices, where llama.cpp's pooling takes one batch


def test_the_openai_client_gets_them_in_every_form(server: Server, gguf: Path) -> None:
    with Model(gguf, vocabulary_only=True) as model:
        tokens = [model.tokenizer.tokens(text, special=False, bos=True) for text in TEXTS]
    whole = vectors(server, TEXTS)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for given in (TEXTS, tokens):
            for more in ({}, {"encoding_format": "float"}, {"dimensions": whole.shape[1], "user": "me"}):
                kinds: Any = {"model": "base", "input": given, **more}
                found = client.embeddings.create(**kinds)
                assert (found.model, found.object) == ("base", "list")
                assert [each.index for each in found.data] == list(range(len(TEXTS)))
                assert np.array_equal(np.array([each.embedding for each in found.data], dtype=np.float32), whole)
                assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
        for one in (TEXTS[0], [TEXTS[0]], tokens[0], [tokens[0]]):
            (data,) = client.embeddings.create(model="base", input=one).data
            assert np.array_equal(np.array(data.embedding, dtype=np.float32), whole[0])
    coded = embed(server, input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), whole[0])


def test_near_sentences_are_near(server: Server) -> None:
    base, near, far = vectors(
        server,
        [
            "please turn on the light in the kitchen",
            "please turn on the lamp in the kitchen",
            "SELECT name FROM users WHERE age > 30;",
        ],
    )
    assert base @ near > base @ far + 0.05


def test_chats_beside_them_are_answered_as_ever_and_the_engine_computes_nothing_for_them(server: Server) -> None:
    def computed() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("pilocal_computed_tokens_total{"))

    def answer(model: str) -> Any:
        return post(server, {"model": model, "messages": CHATS[0], "temperature": 0, "max_tokens": 24}).json()[
            "choices"
        ]

    names = ("colours", "lights", "melted", "base")
    before = {name: answer(name) for name in names}
    apart = vectors(server, TEXTS)
    was = computed()
    vectors(server, TEXTS)
    assert computed() == was
    together: list[Vectors] = []
    threads = [threading.Thread(target=lambda: together.append(vectors(server, TEXTS * 4))) for _ in range(3)]
    for thread in threads:
        thread.start()
    during = [{name: answer(name) for name in names} for _ in range(3)]
    for thread in threads:
        thread.join()
    assert during == [before] * 3
    assert all(np.array_equal(found, np.concatenate([apart] * 4)) for found in together)
    assert len(together) == 3


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "colours", "input": "x"}, 400, "model", "no_embeddings"),
        ({"model": "melted", "input": "x"}, 400, "model", "no_embeddings"),
        ({"model": None, "input": "x"}, 400, "model", "missing_model"),
        ({"model": "text-embedding-3-small", "input": "x"}, 404, "model", "model_not_found"),
        ({"model": ["base"], "input": "x"}, 404, "model", "model_not_found"),
        ({}, 400, "input", "missing_parameter"),
        ({"input": ""}, 400, "input", "invalid_value"),
        ({"input": []}, 400, "input", "invalid_value"),
        ({"input": {"text": "x"}}, 400, "input", "invalid_value"),
        ({"input": 5}, 400, "input", "invalid_value"),
        ({"input": ["x", ""]}, 400, "input.1", "invalid_value"),
        ({"input": [[]]}, 400, "input.0", "invalid_value"),
        ({"input": ["x", 5]}, 400, "input", "invalid_type"),
        ({"input": ["x", [5]]}, 400, "input", "invalid_type"),
        ({"input": [None]}, 400, "input.0", "invalid_type"),
        ({"input": [True]}, 400, "input.0", "invalid_type"),
        ({"input": [5, True]}, 400, "input", "invalid_type"),
        ({"input": [1.5]}, 400, "input.0", "invalid_type"),
        ({"input": [-1]}, 400, "input", "invalid_value"),
        ({"input": [5, 10**9]}, 400, "input", "invalid_value"),
        ({"input": [[5], ["x"]]}, 400, "input.1", "invalid_value"),
        ({"input": ["x"] * 2049}, 400, "input", "invalid_value"),
        ({"input": [[5] * CONTEXT] * 600}, 400, "input", "invalid_value"),
        ({"input": [5] * (CONTEXT + 1)}, 400, "input", "context_length_exceeded"),
        ({"input": ["x", "word " * CONTEXT]}, 400, "input.1", "context_length_exceeded"),
        ({"input": "x", "encoding_format": "int8"}, 400, "encoding_format", "invalid_value"),
        ({"input": "x", "dimensions": 8}, 400, "dimensions", "unsupported_value"),
        ({"input": "x", "dimensions": "8"}, 400, "dimensions", "unsupported_value"),
        ({"input": "x", "user": 5}, 400, "user", "invalid_type"),
        ({"input": "x", "stream": True}, 400, "stream", "unsupported_parameter"),
        ({"input": "x", "truncate": True}, 400, "truncate", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    server: Server, body: Any, status: int, param: str, code: str
) -> None:
    reply = embed(server, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("header", ["X-Pilocal-Fallback: full-prompt", "X-Pilocal-Adapter-Scale: 0.5"])
def test_there_is_no_prompt_and_no_adapter_to_choose(server: Server, header: str) -> None:
    name, value = header.split(": ")
    reply = post(server, {"model": "base", "input": "x"}, {name: value}, path="embeddings")
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(f"{name}: ")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"input": NaN}', b'{"input": "\\ud800"}'])
def test_a_body_that_is_no_request_is_refused(server: Server, body: bytes) -> None:
    reply = post(server, body, path="embeddings")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


def test_the_longest_text_and_the_most_texts_are_taken(server: Server) -> None:
    assert vectors(server, [[7] * CONTEXT]).shape[0] == 1
    found = vectors(server, ["x"] * 2048)
    assert np.array_equal(found, np.repeat(found[:1], 2048, axis=0))


def test_requests_are_logged_and_counted_and_the_memory_is_told(server: Server) -> None:
    reply = embed(server, input=TEXTS[:2])
    tokens = reply.json()["usage"]["prompt_tokens"]
    assert reply.headers["x-pilocal-arm"] == "embedding"
    assert reply.headers["x-pilocal-prompt-tokens"] == str(tokens)
    entry = server.entries[-1]
    assert (entry["path"], entry["task"], entry["arm"], entry["status"]) == ("/v1/embeddings", "base", "embedding", 200)
    assert (entry["prompt_tokens"], entry["completion_tokens"], entry["prompt"]) == (tokens, 0, TEXTS[:2])
    text = httpx.get(f"{server.url}/metrics").text
    assert 'pilocal_requests_total{arm="embedding",status="200",task="base"}' in text
    memory = next(line for line in text.splitlines() if line.startswith("pilocal_embedding_bytes "))
    assert 0 < float(memory.split()[1]) < 2**30


def test_a_client_that_hangs_up_is_worked_for_no_more(server: Server) -> None:
    content = json.dumps({"model": "base", "input": [[7] * CONTEXT] * 580}).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        time.sleep(0.3)
    assert len(vectors(server, ["x"])) == 1  # and nobody waits for the rest
    assert sorted(entry["status"] for entry in server.entries[-2:]) == [200, 499]


def test_nothing_is_taken_before_it_is_asked_for_and_everything_is_given_back(gguf: Path) -> None:
    with Model(gguf) as model:
        embedder = Embedder(model, 300, 1)
        assert embedder.memory == 0
        assert embedder.embed([7, 8, 9]) is not None
        assert embedder.memory == 300 * model.kv_bytes + EMBEDDED * (model.tokenizer.size + model.width) * 4
        assert embedder.embed([7, 8, 9], lambda: True) is None
        first = embedder.embed([7] * 300)
        again = embedder.embed([7] * 300)
        assert first is not None
        assert again is not None
        assert np.array_equal(first, again)
        with pytest.raises(RunError, match="cannot compute a batch"):
            embedder.embed([7] * 2000)
        assert np.array_equal(first, np.asarray(embedder.embed([7] * 300)))
        embedder.close()
        assert embedder.memory == 0


def test_the_response_is_openai_s(server: Server) -> None:
    text = embed(server, input=TEXTS[:2]).text
    found = json.loads(text)
    assert list(found) == ["object", "data", "model", "usage"]
    assert [list(each) for each in found["data"]] == [["object", "index", "embedding"]] * 2
