"""Many clients in one thread, cheap enough to leave the cores to the server: plain sockets, bytes, no JSON."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

HEAD_END, LAST_CHUNK = b"\r\n\r\n", b"\r\n0\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
TOKEN = re.compile(rb'"content": ?"[^"]')
"""What a part of a streamed answer has that is not empty."""

AT_ONCE = 1 << 18
"""Bytes that are read at once."""

PATIENCE = 120.0
"""Seconds without a byte from any connection, after which the server is given up."""


@dataclass(slots=True)
class Reply:
    """What came of a request; times are those of time.perf_counter."""

    number: int
    """That of the request, from 0."""
    began: float
    ended: float = 0.0
    status: int = 0
    """0 where the client hung up."""
    body: bytes = b""
    tokens: list[float] = field(default_factory=list)
    """When each part of a streamed answer came."""

    @property
    def first(self) -> float:
        """Seconds to the first token; to the end where nothing was streamed."""
        return (self.tokens[0] if self.tokens else self.ended) - self.began


class Connection:
    """One client: sends a request at a time, over one connection as long as the server keeps it."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self._port, self._selector = port, selector
        self._socket: socket.socket | None = None
        self._fresh = True
        self._received = bytearray()
        self._scanned = self._body = 0
        self._length: int | None = None
        self._request = b""
        self.reply = Reply(-1, 0.0)

    def send(self, number: int, request: bytes) -> None:
        """Send a request, bytes from the first line on."""
        self._request = request
        self.reply = Reply(number, time.perf_counter())
        self._begin()

    def _begin(self) -> None:
        self._received.clear()
        self._scanned = self._body = 0
        self._length = None
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(self._socket, selectors.EVENT_READ, self)
            self._fresh = True
        try:
            self._socket.sendall(self._request)
        except OSError:
            self._again()

    def _again(self) -> None:
        """Send it over a new connection, where the server has closed an old one meanwhile."""
        fresh = self._fresh
        self.close()
        if fresh:
            raise ConnectionError("the server has closed a new connection without an answer")
        self._begin()

    def read(self) -> bool:
        """Read what has come; return whether the answer is whole."""
        assert self._socket is not None
        try:
            data = self._socket.recv(AT_ONCE)
        except OSError:
            data = b""
        now = time.perf_counter()
        if not data:
            if not self._received:
                self._again()
                return False
            return self._end(now, closes=True)
        self._received += data
        if not self._body:
            self._read_head()
        for found in TOKEN.finditer(self._received, self._scanned):
            self.reply.tokens.append(now)
            self._scanned = found.end()
        return self._is_whole() and self._end(now, closes=False)

    def _read_head(self) -> None:
        end = self._received.find(HEAD_END)
        if end >= 0:
            self._body = self._scanned = end + len(HEAD_END)
            found = LENGTH.search(self._received, 0, self._body)
            self._length = int(found[1]) if found else None

    def _is_whole(self) -> bool:
        if not self._body:
            return False
        if self._length is None:
            return self._received.endswith(LAST_CHUNK)
        return len(self._received) >= self._body + self._length

    def _end(self, now: float, *, closes: bool) -> bool:
        self.reply.ended = now
        self.reply.status = int(self._received[9:12])
        self.reply.body = bytes(self._received[self._body :])
        self._fresh = False
        if closes or CLOSES.search(self._received, 0, self._body):
            self.close()
        return True

    @property
    def received(self) -> int:
        """Bytes of the answer that have come."""
        return len(self._received)

    def hang_up(self) -> None:
        """Close the connection amid the answer."""
        self.reply.ended = time.perf_counter()
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None


class Clients:
    """Clients of one server, each with a connection of its own; a context manager."""

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self.connections = [Connection(port, self._selector) for _ in range(count)]

    def wait(self) -> Iterator[tuple[Connection, bool]]:
        """Wait for bytes, read them, and yield each connection that got some and whether its answer is whole."""
        ready = self._selector.select(PATIENCE)
        if not ready:
            raise TimeoutError("the server says nothing any more")
        for connection in (key.data for key, _ in ready):
            if connection.reply.ended:  # the server closes what has been idle for long
                connection.close()
            else:
                yield connection, connection.read()

    def __enter__(self) -> Clients:
        """Return them."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close every connection."""
        for connection in self.connections:
            connection.close()
        self._selector.close()


def post(body: bytes, path: str = "/v1/chat/completions", headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return a request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    head += "".join(f"\r\n{name}: {value}" for name, value in headers.items())
    return head.encode() + HEAD_END + body


def get(path: str) -> bytes:
    """Return a request for what is at a path."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1".encode() + HEAD_END


def never(number: int) -> bool:
    """Tell that no client hangs up."""
    return False


def replies(
    port: int, requests: Iterable[bytes], clients: int, hangs_up: Callable[[int], bool] = never, status: int = 200
) -> Iterator[Reply]:
    """Send requests from so many clients, each its next as soon as its last is answered; yield what came of each.

    Who hangs up does so at the first bytes of the answer. Raises ConnectionError or TimeoutError for a server that is
    gone, and RuntimeError for any answer that has another status.
    """
    left = enumerate(requests)
    with Clients(port, clients) as all_clients:
        busy = sum(_next(connection, left) for connection in all_clients.connections)
        while busy:
            for connection, whole in all_clients.wait():
                reply = connection.reply
                if not whole:
                    if not hangs_up(reply.number):
                        continue
                    connection.hang_up()
                elif reply.status != status:
                    raise RuntimeError(f"{reply.status}: {reply.body[:500]!r}")
                busy -= not _next(connection, left)
                yield reply


def _next(connection: Connection, left: Iterator[tuple[int, bytes]]) -> bool:
    """Send the next request, if one is left; return whether there was one."""
    found = next(left, None)
    if found is not None:
        connection.send(*found)
    return found is not None
