"""An endpoint that fails in every way: what is sent again, what is one line, and what is never said."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import sleep

import pytest

from pilocal.errors import RunError
from pilocal.synth import endpoint as endpoints
from pilocal.synth.endpoint import KEY, Endpoint
from tests.test_synth_generator import Reply, completion, pauses, serving

__all__ = ["pauses"]  # a fixture


def test_an_endpoint_is_asked_again_while_that_may_help(pauses: list[float]) -> None:
    replies: list[Reply] = [(429, {"Retry-After": "7"}, ""), (503, {}, ""), (200, {}, "no json"), completion("fine")]
    with serving(lambda body, count: replies[count - 1]) as (url, sent):
        assert Endpoint(url, "m", budget=10)(["hello"]) == ["fine"]
    assert [body["messages"] for body, _ in sent] == [[{"role": "user", "content": "hello"}]] * 4
    assert sent[0][0]["model"] == "m"
    assert pauses == [7.0, 2.0, 4.0]


def test_what_does_not_help_is_one_line() -> None:
    with serving(lambda body, count: (401, {}, "")) as (url, sent):
        with pytest.raises(RunError, match=r"/v1: the endpoint refuses; got '401 Unauthorized'; check the address"):
            Endpoint(url, "m", budget=10)(["hello"])
        assert len(sent) == 1
    with pytest.raises(RunError, match=r"no answer after 6 tries; got .*refused.*; start the endpoint"):
        Endpoint(url, "m", budget=10)(["hello"])  # it is gone by now
    with serving(lambda body, count: completion(None)) as (url, sent):
        with pytest.raises(RunError, match="no answer after 6 tries; got 'no chat completion'"):
            Endpoint(url, "m", budget=10)(["hello"])
        with pytest.raises(RunError, match="the budget of requests is used up; got 3; raise"):
            Endpoint(url, "m", budget=3)(["hello"])
        assert len(sent) == 6 + 3


def test_an_endpoint_that_hangs_or_trickles_or_breaks_off_is_asked_again(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "PATIENCE", 0.3)
    whole = completion("fine")[2]
    with listening("hang", "trickle", "break off", "nonsense", whole) as url:
        assert Endpoint(url, "m", budget=10)(["hello"]) == ["fine"]
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    with listening(*["hang"] * 6) as url, pytest.raises(RunError, match=r"no answer after 6 tries; got .*timed out"):
        Endpoint(url, "m", budget=10)(["hello"])


@contextmanager
def listening(*faults: str) -> Iterator[str]:
    """An endpoint on loopback that fails below HTTP, in one way after the other; what is none is the body it sends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for fault in faults:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(3)
                with connection.makefile("rb") as request:
                    headers = iter(request.readline, b"\r\n")
                    length = next(
                        int(line.split(b":")[1]) for line in [*headers] if line.lower().startswith(b"content-l")
                    )
                    request.read(length)
                answer(connection, fault)

    def answer(connection: socket.socket, fault: str) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        if fault == "hang":
            connection.recv(1)
        elif fault == "trickle":
            connection.sendall(head % 1000)
            for _ in range(30):
                sleep(0.05)
                connection.sendall(b" ")
        elif fault == "break off":
            connection.sendall(head % 1000 + b"{")
        elif fault == "nonsense":
            connection.sendall(b"what?\r\n\r\n")
        else:
            connection.sendall(head % len(fault.encode()) + fault.encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()
        thread.join(10)


def test_a_refusal_says_what_the_endpoint_says_and_never_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    body = json.dumps({"error": {"message": "no such key: sk-secret, and the context is 9 tokens too long"}})
    with serving(lambda *_: (400, {}, body)) as (url, _), pytest.raises(RunError) as raised:
        Endpoint(url, "m", budget=10)(["hello"])
    assert "got '400 Bad Request: no such key: ***, and the context is 9 tokens too long'" in str(raised.value)


@pytest.mark.parametrize(("usage", "calls"), [({"total_tokens": 40}, 3), (None, 2)])
def test_tokens_are_counted_and_have_a_budget(usage: dict[str, int] | None, calls: int) -> None:
    reply = json.dumps({"choices": [{"message": {"content": "fine"}}], "usage": usage})
    with serving(lambda *_: (200, {}, reply)) as (url, sent):
        endpoint = Endpoint(url, "m", budget=10, budget_tokens=100)
        with pytest.raises(RunError, match=r"the budget of tokens is used up; got \d+; raise \[synth\] budget_tokens"):
            endpoint(["hello " * 40] * 9)
        assert len(sent) == calls
