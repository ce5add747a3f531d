"""The door of synth's endpoint: what somebody else's server answers, as bytes of HTTP."""

from __future__ import annotations

import json
import os
import socket
import threading
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pilocal.synth.endpoint as endpoints
from pilocal.errors import RunError
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

ANSWER: Any = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ZOR"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
ERROR: Any = {"error": {"message": "no such model", "type": "invalid_request_error", "code": None}}
HEADS = (
    "HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.1 429 Slow", "HTTP/1.1 302 x\r\nLocation: file:///etc/passwd",
    "HTTP/1.1 301 x\r\nLocation: http://127.0.0.1:1/v1", "HTTP/1.1 100 Continue", "HTTP/1.1 999 x", "HTTP/1.1 -1 x",
    "SSH-2.0",
    "HTTP/9.9 200 OK", "HTTP/1.1 200", "HTTP/1.1 204 None", "HTTP/1.1 503 x\r\nRetry-After: 99999999999", "\x00" * 99,
)  # fmt: skip
LINES = (
    "Content-Length: 99999999999", "Content-Length: -1", "Content-Length: x", "Content-Length: 3", "Retry-After: nan",
    "Transfer-Encoding: chunked", "Content-Encoding: gzip", "X: " + "y" * 70_000, "Connection: keep-alive", ": x", "x",
    "Retry-After: Wed, 99 Oct 99999 07:28:00 GMT", "Content-Type: text/html; charset=utf-7", "Set-Cookie: a=b",
    " folded",
)  # fmt: skip


class _Server:
    """Answers every request of one process with the same bytes, and hangs up."""

    def __init__(self) -> None:
        self.said = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                try:
                    connection.settimeout(5)
                    asked = connection.recv(1 << 16)
                    while asked and b"user" not in asked:
                        asked = connection.recv(1 << 16)
                    connection.sendall(self.said)
                except OSError:
                    continue


server = cache(_Server)


def _make(random: Random) -> Files:
    server()
    return {"head": b"HTTP/1.1 200 OK\r\nContent-Type: application/json", "body": json.dumps(ANSWER).encode()}


def _mutate(files: Files, random: Random) -> Files:
    kind = random.randrange(6)
    head = files.get("head", b"")
    if kind == 0:
        return files | {"head": random.choice(HEADS).encode() + b"\r\n" + head.partition(b"\r\n")[2]}
    if kind == 1:
        return files | {"head": head + b"\r\n" + random.choice(LINES).encode()}
    if kind == 2:
        return files | {"body": mutate.JSON(json.dumps(ERROR).encode(), random)}
    if kind == 3:
        return files | {"head": mutate.any_bytes(head, random)}
    return files | {"body": mutate.JSON(files["body"], random)}


def _knock(folder: Path, files: Files) -> None:
    server().said = files.get("head", b"") + b"\r\n\r\n" + files.get("body", b"")
    endpoint = endpoints.Endpoint(url=server().url, model="x", budget=2, budget_tokens=1000)
    with patch.dict(os.environ, {endpoints.KEY: "sk-a-secret"}), patch.object(endpoints, "sleep"):
        try:
            json.dumps(endpoint(["a user asks"]), ensure_ascii=False).encode()
        except RunError as error:
            assert "sk-a-secret" not in str(error)
            raise


door(
    Door(
        name="endpoint",
        make=_make,
        mutate=_mutate,
        knock=_knock,
        lay=False,
        short=40,
    )
)
