"""Attacks on the server: requests in requests, clients that say nothing, too many of them, odd paths, the key."""

from __future__ import annotations

import asyncio
import hmac
import json
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from pilocal.server import gateway, protocol
from pilocal.server.access import Access
from pilocal.server.api_key import ApiKey
from pilocal.server.protocol import Protocol, most_connections
from pilocal.server.refusal import Refusal
from tests.fuzz.server_doors import KEY, house, spoken

BODY = json.dumps({"model": "base", "messages": [{"role": "user", "content": "red"}], "max_tokens": 1}).encode()
NEXT = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"


def request(*lines: str, path: str = "/v1/chat/completions", method: str = "POST", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def test_a_plain_request_is_answered_and_so_is_the_one_behind_it() -> None:
    whole = request(f"Content-Length: {len(BODY)}", body=BODY)
    assert spoken(whole).startswith(b"HTTP/1.1 200 ")
    assert spoken(NEXT + NEXT).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: +5"],
        ["Content-Length: 0x5"],
        ["Content-Length : 5"],
        ["Host: evil.example", "Content-Length: 5"],
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health"])
def test_a_request_whose_end_is_told_in_two_ways_is_refused_and_nothing_behind_it_is_read(
    lines: list[str], path: str
) -> None:
    said = spoken(request(*lines, path=path, body=b"0\r\n\r\n" + NEXT))
    assert said[9:12] in (b"400", b"501")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"colours" not in said
    assert b"connection: close" in said.lower()


@pytest.mark.parametrize("path", ["//v1/models", "/v1/models/", "http://localhost/v1/models", "/v1/models/base"])
def test_another_writing_of_a_path_goes_round_no_key(path: str) -> None:
    assert spoken(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[9:12] == b"401"
    assert spoken(request(path=path, method="GET"))[9:12] == b"200"


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page.html"),
        *("/health/../metrics", "/health/../v1/models", "/./v1/models", "/v1/models%00"),
        *("/V1/models", "/v1%2fmodels%20", "/health%2f..%2fmetrics", "/\\..\\..\\etc\\passwd", "/health;/../metrics"),
    ],
)
def test_a_path_trick_finds_nothing_and_goes_round_no_key(path: str) -> None:
    said = spoken(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert said[9:12] in (b"401", b"404", b"400"), said
    assert b"root:" not in said
    assert b"colours" not in said
    with_key = spoken(request(path=path, method="GET"))
    assert with_key[9:12] in (b"404", b"400"), with_key


def test_a_page_of_another_origin_that_posts_without_asking_first_is_refused() -> None:
    """A form or a fetch with no-cors sends no preflight; its Content-Type is plain text."""
    for lines in (["Origin: https://evil.example"], ["Origin: null"], ["Origin: http://localhost:9999"]):
        said = spoken(request(*lines, "Content-Type: text/plain", f"Content-Length: {len(BODY)}", body=BODY))
        assert said[9:12] == b"403", said
        assert b"access-control-allow-origin" not in said.lower()


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    access = Access(ApiKey("right"))
    for given in ("wrong", "right", "", "righ", "\xe9"):
        headers = {"authorization": f"Bearer {given}"}
        if given == "right":
            access.check("/metrics", headers)
        else:
            with pytest.raises(Refusal):
                access.check("/metrics", headers)
    assert [one for one, _ in compared] == [given.encode() for given in ("wrong", "right", "", "righ", "\xe9")]


async def quick(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with its path."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(talk: Callable[[int], Awaitable[None]]) -> None:
    """Talk with a server of the protocol that gives every request the same answer."""
    from uvicorn import Config
    from uvicorn.server import ServerState

    async def run() -> None:
        loop = asyncio.get_running_loop()
        config = Config(quick, http=Protocol, access_log=False, ws="none", lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        server = await loop.create_server(lambda: Protocol(config, state, {}, loop), "127.0.0.1", 0)
        try:
            async with asyncio.timeout(120):
                await talk(server.sockets[0].getsockname()[1])
        finally:
            for connection in [*state.connections]:
                connection.transport.abort()
            server.close()
            await asyncio.sleep(0)

    asyncio.run(run())


async def hung_up(writer: asyncio.StreamWriter) -> None:
    """End a connection."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "begun", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: local", b"GET / HTTP/1.1\r\nA: b\r\n"]
)
def test_a_client_that_does_not_end_its_head_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        assert await reader.read() == b""
        await hung_up(writer)

    served(talk)


def test_a_head_that_begins_behind_an_answer_has_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 3)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"ok")
        writer.write(b"GET / HT")
        assert await reader.read() == b""
        await hung_up(writer)

    served(talk)


def test_silent_clients_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "most_connections", lambda: 3)

    async def talk(port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        assert await silent[0][0].read() == b"", "the oldest makes room"
        for _, each in (*silent, (reader, writer)):
            await hung_up(each)

    served(talk)


def test_as_many_connections_are_taken_as_the_system_has_files_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for files in (100, 256, 1_000_000, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda which, files=files: (files, files))
        most_connections.cache_clear()
        found.append(most_connections())
    most_connections.cache_clear()
    assert found == [36, 192, 1000, 1000]


def test_a_body_that_trickles_in_is_refused_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "BODY_SECONDS", 0.2)
    part = BODY[:10]

    async def ask() -> list[Any]:
        sent: list[Any] = []
        first = [{"type": "http.request", "body": part, "more_body": True}]

        async def receive() -> Any:
            if first:
                return first.pop()
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await house().app(scope, receive, send)
        return sent

    sent = house().loop.run_until_complete(ask())
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in [(name.lower(), value) for name, value in sent[0]["headers"]]
