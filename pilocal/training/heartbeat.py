"""Processes that train together tell each other that they are there.

A process that dies closes its connections, and what the others compute together fails at once. One that is stopped, or
whose machine is gone, closes nothing, and the others would wait for it without end, deep in a library that heeds no
signal. So every process also has a connection to the first, over which a byte goes every few seconds. A process that is
only slow goes on telling.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pilocal.errors import TrainingError

BEAT = 2.0
"""Seconds between two bytes."""

SILENCE = 60.0
"""Seconds without a byte after which a process is given up."""

LEAVING = 10.0
"""Seconds that a process has to notice by itself that another has died."""

CONNECTING = 10.0
"""Seconds that the connection to the first process may take."""

WORDS = 4
"""Numbers of 32 bits that a connection has to show, so that no other program is taken for a process."""

AGAIN = "run the same command again; nothing saved is lost"


@dataclass(slots=True)
class Peer:
    """Another process, as far as it is heard."""

    connection: socket.socket
    rank: int
    heard: float
    """When it last said that it is there, by time.monotonic."""


class Heartbeat:
    """Ends this process, with a line, once another of its training says nothing any more.

    Where the first process has no address that the others reach, nobody is watched.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._peers: list[Peer] = []
        self._listener: socket.socket | None = None
        self._secret = b""

    def listen(self, address: str | None) -> list[int]:
        """Wait for the other processes, in the first; return 1 + WORDS numbers with which they find it."""
        self._secret = secrets.token_bytes(4 * WORDS)
        port = 0
        with suppress(OSError):
            if address:
                family, _, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
                self._listener = socket.create_server(where[:2], family=family, backlog=self._size)
                self._listener.setblocking(False)
                port = self._listener.getsockname()[1]
                self._start()
        words = (self._secret[4 * i : 4 * i + 4] for i in range(WORDS))
        return [port, *(int.from_bytes(word, "little", signed=True) for word in words)]

    def connect(self, address: str | None, numbers: Sequence[int]) -> None:
        """Find the first process by the numbers that it has told."""
        port, *words = numbers
        secret = b"".join(word.to_bytes(4, "little", signed=True) for word in words)
        with suppress(OSError):
            if address and port:
                connection = socket.create_connection((address, port), CONNECTING)
                connection.sendall(secret + self._rank.to_bytes(4, "little"))
                self._add(connection, 0)
                self._start()

    def leave(self) -> None:
        """Say nothing more."""
        self._left.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="pilocal-heartbeat", daemon=True)
        self._thread.start()

    def _add(self, connection: socket.socket, rank: int) -> None:
        connection.setblocking(False)
        self._peers.append(Peer(connection, rank, time.monotonic()))

    def _watch(self) -> None:
        while not self._left.wait(BEAT):
            while self._listener is not None and len(self._peers) < self._size - 1 and self._accept(self._listener):
                pass
            for peer in list(self._peers):
                if not self._beat(peer):
                    self._peers.remove(peer)
                    peer.connection.close()
                    self._without(peer.rank)
        for each in (self._listener, *(peer.connection for peer in self._peers)):
            if each is not None:
                each.close()

    def _accept(self, listener: socket.socket) -> bool:
        """Take a new connection, if it is of a process that knows the secret; return whether there was one."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return False
        connection.settimeout(BEAT)
        said = b""
        with suppress(OSError):
            said = connection.recv(4 * WORDS + 4, socket.MSG_WAITALL)
        if hmac.compare_digest(said[: 4 * WORDS], self._secret):
            self._add(connection, int.from_bytes(said[4 * WORDS :], "little"))
        else:
            connection.close()
        return True

    def _beat(self, peer: Peer) -> bool:
        """Tell another process that this one is there, and hear whether it is; return False where it has ended."""
        try:
            while peer.connection.recv(64):
                peer.heard = time.monotonic()
            return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        with suppress(OSError):  # it is noticed the next time
            peer.connection.send(b".")
        if time.monotonic() - peer.heard > SILENCE:
            what = f"rank {peer.rank} has said nothing for {SILENCE:.0f} s"
            self._end(what, f"see whether it is stopped or its machine is gone, and {AGAIN}")
        return True

    def _without(self, rank: int) -> None:
        """Give this process time to end by itself, as another has ended, for good or bad."""
        if not self._left.wait(LEAVING):
            self._end(f"rank {rank} is gone", AGAIN)

    def _end(self, what: str, fix: str) -> None:
        error = TrainingError(f"rank {self._rank} of {self._size}", what, fix=fix)
        os.write(2, f"{error}\n".encode())
        os._exit(1)  # the main thread waits in a library, where nothing else reaches it
