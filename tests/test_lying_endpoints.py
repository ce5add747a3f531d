"""Endpoints that lie: none takes the key elsewhere, fills the memory, or holds `pilocal synth` up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import sleep

import pytest

from pilocal.errors import RunError
from pilocal.synth import endpoint as endpoints
from pilocal.synth.endpoint import KEY, Endpoint

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "sleep", lambda seconds: None)
    monkeypatch.setattr(endpoints, "TRIES", 2)
    monkeypatch.setenv(KEY, "sk-secret")


@contextmanager
def answering(*pieces: bytes, pause: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """An endpoint that answers every request with these bytes, piece by piece; it notes what was asked."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                said = b""
                while not said.endswith(b"}") and (part := connection.recv(1 << 16)):
                    said += part
                if said:
                    asked.append(said)
                for piece in pieces if not stopped.is_set() else ():
                    connection.sendall(piece)
                    sleep(pause)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", asked
    finally:
        stopped.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join(60)
        listener.close()


def refusal(url: str) -> str:
    with pytest.raises(RunError) as found:
        Endpoint(url, "m", budget=9)(["hello"])
    said = str(found.value)
    assert "\n" not in said
    assert "sk-secret" not in said
    return said


def test_a_redirection_is_not_followed_so_that_the_key_stays_with_its_endpoint() -> None:
    with answering(OK + b'{"choices": [{"message": {"content": "stolen"}}]}') as (other, asked):
        head = f"HTTP/1.1 307 Moved\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(head) as (url, _):
            assert "the endpoint refuses; got '307 Moved'" in refusal(url)
        assert asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"9" * 100_000,
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": ["x"]}',
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b'{"choices": {"0": {}}}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_chat_completion_is_one_line(body: bytes) -> None:
    with answering(OK + body) as (url, _):
        assert "no answer after 2 tries; got 'no chat completion'" in refusal(url)


def test_an_endless_answer_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MOST_BYTES", 2**16)
    with answering(OK, *[b" " * 2**14] * 40) as (url, _):
        assert "no chat completion" in refusal(url)


def test_a_head_that_trickles_in_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the patience, and the whole would take four times that."""
    monkeypatch.setattr(endpoints, "PATIENCE", 0.5)
    monkeypatch.setattr(endpoints, "MARGIN", 0.5)
    monkeypatch.setattr(endpoints, "TRIES", 1)
    with answering(*[b"x"] * 40, pause=0.1) as (url, _):
        assert "the answer did not begin within 0.5 s" in refusal(url)
