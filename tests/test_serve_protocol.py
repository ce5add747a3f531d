"""HTTP's own bounds, and that what is written together is sent together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pilocal.server.protocol import JoinedWrites
from tests.serving import Server, post, running

LARGE = 200 * 2**10
"""Bytes of a head that no client sends."""


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(runs[:1], tmp_path_factory.mktemp("server")) as server:
        yield server


class Sent(asyncio.Transport):
    """A transport that notes what it is given."""

    def __init__(self) -> None:
        super().__init__({"peername": "somebody"})
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True


def test_what_is_written_before_the_loop_goes_on_is_sent_as_one_piece() -> None:
    async def wrote() -> tuple[Sent, JoinedWrites]:
        transport = Sent()
        joined = JoinedWrites(transport, asyncio.get_running_loop())
        joined.write(b"head ")
        joined.write(b"body")
        assert transport.sent == []
        await asyncio.sleep(0)
        assert transport.sent == [b"head body"]
        joined.write(b" more")
        await asyncio.sleep(0)
        joined.write(b" and")
        joined.write(b" last")
        joined.close()
        await asyncio.sleep(0)
        return transport, joined

    transport, joined = asyncio.run(wrote())
    assert transport.sent == [b"head body", b" more", b" and last"]
    assert transport.closed
    assert joined.get_extra_info("peername") == "somebody"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * LARGE,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: a\r\n" * (LARGE // 11),
        b"GET /" + b"a" * LARGE,
    ],
    ids=["a long header", "many headers", "a long path"],
)
def test_a_head_without_an_end_is_refused(server: Server, head: bytes) -> None:
    address, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((address, int(port)), timeout=60) as connection:
        said = b""
        try:
            connection.sendall(head)
            while data := connection.recv(2**16):
                said += data
        except ConnectionError:  # the server has closed it with bytes of the head unread
            pass
    assert said[:12] in (b"HTTP/1.1 400", b"")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_several_answers_of_one_connection_are_whole(server: Server) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "temperature": 0}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        replies = [client.post("/v1/chat/completions", json=body).json() for _ in range(3)]
        streams = [client.post("/v1/chat/completions", json={**body, "stream": True}).text for _ in range(2)]
    texts = {reply["choices"][0]["message"]["content"] for reply in replies}
    assert texts == {post(server, body).json()["choices"][0]["message"]["content"]}
    assert all(stream.endswith("data: [DONE]\n\n") for stream in streams)
