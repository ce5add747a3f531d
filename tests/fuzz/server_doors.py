"""Doors of the server: requests as bytes, as HTTP and as bodies, and what a model says of calls."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from pilocal.llamacpp.json_schema import UnsupportedSchema
from pilocal.server.access import Access
from pilocal.server.api_key import ApiKey
from pilocal.server.app import make_app
from pilocal.server.options import ServeOptions
from pilocal.server.refusal import Refusal
from pilocal.server.request import CHAT, COMPLETION, EMBEDDINGS, RESPONSES, read_request
from pilocal.server.tool_calls import CallStream
from pilocal.server.tool_family import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS, NONE
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

KEY = "the-key-of-the-fuzzer"
FAMILIES = (NONE, HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
        "strict": True,
    },
}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
SAID: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is red?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "user", "content": "and blue?"},
]
MORE: Any = {
    "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 7, "n": 1, "stop": ["x", "\n\n"],
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "repeat_penalty": 1.1, "logit_bias": {"5": 1, "7": -100},
    "stream": True, "stream_options": {"include_usage": True}, "user": "me", "min_p": 0.1, "metadata": {"a": "b"},
    "store": False, "service_tier": "auto",
}  # fmt: skip
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": TOOL["function"]["parameters"]}}
ITEMS: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
]


def _some(given: Any, random: Random) -> Any:
    """Return some keys of an object; a stream's options only with a stream."""
    found = {key: value for key, value in given.items() if random.random() < 0.4}
    return found if found.get("stream") else {key: value for key, value in found.items() if key != "stream_options"}


def _body(path: str, random: Random, *, tools: bool) -> Any:
    """Return a good request."""
    if path == EMBEDDINGS:
        return {"model": "base", "input": random.choice(("red", ["red", "blue"], [1, 2, 3], [[1, 2], [3]]))}
    some = {**_some(MORE, random), "model": random.choice(("base", "colours"))}
    if path == COMPLETION:
        return {**some, "prompt": "red is", "max_tokens": 2, "echo": True, "logprobs": 2}
    with_tools = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False} if tools else {}
    if path == RESPONSES:
        kept = {name: some[name] for name in ("temperature", "top_p", "stream", "metadata", "model") if name in some}
        own = {"instructions": "Be brief.", "max_output_tokens": 2, "input": ITEMS[: 3 if tools else 1]}
        flat = (
            {"tools": [{"type": "function", **TOOL["function"]}]} if tools else {"text": {"format": {"type": "text"}}}
        )
        return {**kept, **own, **flat}
    form = {} if tools else random.choice(({}, {"response_format": FORM}, {"grammar": 'root ::= "a"+'}))
    return {**some, "max_tokens": 2, "messages": SAID if tools else [SAID[0], SAID[1]], **with_tools, **form}


def _make_request(random: Random) -> Files:
    path, family = random.choice((CHAT, RESPONSES, COMPLETION)), random.randrange(len(FAMILIES))
    body = _body(path, random, tools=family > 0)
    return {"body.json": json.dumps(body).encode(), "way": json.dumps([path, family]).encode()}


def _knock_request(folder: Path, files: Files) -> None:
    path, family = json.loads(files.get("way", b'["/v1/chat/completions", 1]'))
    try:
        found = read_request(path, files.get("body.json", b""), 2048, FAMILIES[family])
        json.dumps(found.body).encode()
    except Refusal as refusal:
        _check_refusal(refusal.status, json.dumps(refusal.body).encode())
    except UnsupportedSchema:
        return


def _check_refusal(status: int, body: bytes) -> None:
    """Raise AssertionError where the server is at fault, or tells too much."""
    assert status < 500, f"{status}: {body[:300]!r}"
    assert KEY.encode() not in body


def _mutate_request(files: Files, random: Random) -> Files:
    return files | {"body.json": mutate.JSON(files["body.json"], random)}


door(
    Door(
        name="request",
        make=_make_request,
        mutate=_mutate_request,
        knock=_knock_request,
        lay=False,
    )
)


TEXTS: tuple[str, ...] = (
    'I will look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>\nDone',
    '{"name": "weather", "parameters": {"city": "Rome", "x": [1, 2.5e3, null, "\\u00e9\\n"]}}',
    '<|python_tag|>{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": {}}',
    '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}, "id": "abcdefghi"}]',
    '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{}',
)


LONGEST_ANSWER = 2**20
"""Characters: more than any context holds."""


def _knock_answer(folder: Path, files: Files) -> None:
    text = files["answer"].decode("utf-8", "replace")[:LONGEST_ANSWER]
    for number, family in enumerate(FAMILIES[1:]):
        calls = CallStream(family, ["weather"], Random(number), eager=number % 2 == 0, parallel=number % 3 > 0)
        step = max(3, len(text) // 50)
        found = [delta for start in range(0, len(text), step) for delta in calls.feed(text[start : start + step])]
        json.dumps([*found, *calls.end()])
        calls.finish_reason(cut_off=False)


door(
    Door(
        name="answer-calls",
        make=lambda random: {"answer": random.choice(TEXTS).encode()},
        mutate=lambda files, random: {"answer": mutate.one_of(mutate.TEXT, mutate.JSON)(files["answer"], random)},
        knock=_knock_answer,
        lay=False,
        short=60,
    )
)


class _Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


class _House:
    """An application with a tiny model, its event loop, and what it has logged."""

    def __init__(self) -> None:
        from pilocal.base.base import find_base
        from tests.served import make_run
        from tests.tiny import make_adapter, make_base

        folder = Path(mkdtemp(prefix="pilocal-fuzz-"))
        starter = find_base("starter", folder)
        sizes: Any = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
        base = make_base(folder / "base", starter.folder, **sizes)
        shipped = make_run(folder / "colours", base, make_adapter(folder / "adapter", base))
        self.entries: list[Any] = []
        access = Access(ApiKey(KEY), hosts=("localhost", "127.0.0.1"), origins=("http://localhost:3000",))
        options = ServeOptions(context=96, threads=1, parallel=2, cache=1, log_contents=True)
        self.app = make_app([shipped], options, access, self.entries.append)
        self.loop = asyncio.new_event_loop()
        self.errors = _Errors()
        for name in ("pilocal", "uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(self.errors)
            logging.getLogger(name).propagate = False
        atexit.register(self.app.__exit__, None, None, None)

    def check(self) -> None:
        """Raise AssertionError for an error that was logged, or for the key in the log."""
        said, self.errors.said = self.errors.said, []
        entries, self.entries[:] = repr(self.entries), []
        assert not said, said[0]
        assert KEY not in entries


house: Callable[[], _House] = cache(_House)

HEADERS = (
    f"Authorization: Bearer {KEY}", "Host: localhost", "Host: evil.example", "Origin: http://localhost:3000",
    "Origin: https://evil.example", "Content-Length: 5", "Content-Length: 99999999999999999999", "Content-Length: -1",
    "Content-Length: 0x10", "Content-Length: +3", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity", "Expect: 100-continue", "Connection: close", "Connection: Upgrade", "Upgrade: h2c",
    "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "X-Pilocal-Adapter-Scale: 1e999",
    "X-Pilocal-Adapter-Scale: nan", "X-Pilocal-Adapter-Scale: 0.5", "X-Pilocal-Adapter-Scale: \u0661",
    "X-Pilocal-Fallback: full-prompt", "X-Pilocal-Fallback: x", "Content-Type: application/xml", "Accept: */*",
    "Content-Encoding: gzip", "X: " + "y" * 9_000, "Cookie: a=b", "Access-Control-Request-Method: POST",
    "Access-Control-Request-Headers: a\tb", "Host:", "Host: [::1", "Authorization: Bearer", "Authorization: Basic eA==",
)  # fmt: skip
STARTS = (
    "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/embeddings", "GET /", "HEAD /",
    "GET /health", "GET /metrics", "GET /v1/models", "GET /shadow", "OPTIONS /v1/chat/completions", "PUT /v1/models",
    "GET /../../etc/passwd", "GET /%2e%2e/%2e%2e/etc/passwd", "GET //", "GET /v1/models/", "GET /\u00e9", "GET *",
    "CONNECT localhost:80", "GET http://evil.example/health", "GET /%ff%fe", "GET /?a=b#c", "TRACE /", "POST /health",
)  # fmt: skip


def _make_http(random: Random) -> Files:
    path = random.choice((CHAT, RESPONSES, COMPLETION, EMBEDDINGS))
    house()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}"
    return {"body.json": json.dumps(_body(path, random, tools=False)).encode(), "head": head.encode()}


def _mutate_head(head: bytes, random: Random) -> bytes:
    lines = head.split(b"\r\n")
    kind = random.randrange(5)
    if kind == 0:
        lines[0] = random.choice(STARTS).encode("latin-1") + b" HTTP/1.1"
    elif kind < 3:
        lines.insert(random.randint(1, len(lines)), random.choice(HEADERS).encode())
    elif kind == 3 and len(lines) > 1:
        del lines[random.randrange(1, len(lines))]
    else:
        return mutate.any_bytes(head, random)
    return b"\r\n".join(lines)


def _mutate_http(files: Files, random: Random) -> Files:
    if random.random() < 0.5:
        return files | {"head": _mutate_head(files["head"], random)}
    return files | {"body.json": mutate.JSON(files["body.json"], random)}


class _Connection(asyncio.Transport):
    """A connection to nobody, which keeps what is sent."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 80)})
        self.sent = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def spoken(data: bytes) -> bytes:
    """Return what the server says to these bytes, on a connection that ends then; raises AssertionError for a fault."""
    from uvicorn import Config
    from uvicorn.server import ServerState

    from pilocal.server.protocol import Protocol

    found = house()

    async def ask() -> bytes:
        config = Config(found.app, http=Protocol, access_log=False, ws="none", lifespan="off", log_config=None)
        config.load()
        state, connection = ServerState(), _Connection()
        protocol = Protocol(config, state, {}, found.loop)
        protocol.connection_made(connection)
        protocol.data_received(data)
        for _ in range(2_000):
            if connection.closed or not state.tasks:
                break
            await asyncio.sleep(0 if connection.sent else 0.0005)
        protocol.connection_lost(None)
        if state.tasks:
            _, left = await asyncio.wait(state.tasks, timeout=60)
            assert not left, "a request goes on though its client has hung up"
        return bytes(connection.sent)

    said = found.loop.run_until_complete(ask())
    found.check()
    return said


def _knock_http(folder: Path, files: Files) -> None:
    head, body = files.get("head", b""), files.get("body.json", b"")
    if b"ontent-" not in head and b"ransfer-" not in head:
        head += b"\r\nContent-Length: %d" % len(body)
    said = spoken(head + b"\r\n\r\n" + body)
    status = int(said[9:12]) if said.startswith(b"HTTP/1.") else 0
    _check_refusal(status if status != 501 else 400, said)


door(
    Door(
        name="http",
        make=_make_http,
        mutate=_mutate_http,
        knock=_knock_http,
        lay=False,
        short=60,
        memory=2**31,
    )
)
