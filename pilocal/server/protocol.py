"""HTTP as the server speaks it: uvicorn's, with h11, but what is written together is sent together."""

from __future__ import annotations

import asyncio
import resource
from functools import cache
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30
"""Seconds within which a request's head has to arrive, from the connection or from the head's first byte on."""
MOST_CONNECTIONS = 1000
"""Connections at once; a new one then takes the place of the one that has waited longest without a request."""
OTHER_FILES = 64
"""Of the files that the system lets this process have open, those that connections do not take."""


class Protocol(H11Protocol):
    """One connection. h11 bounds a request's head, which httptools, uvicorn's own choice where it is, does not.

    Clients that connect and say nothing, or little by little, keep nobody out.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _began = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a connection."""
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))
        self._began = self.loop.time()
        self._watch_head()
        if len(self.connections) > most_connections():
            self._longest_waiting().transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with a connection."""
        self._unwatch_head()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Go on with what has arrived."""
        super().handle_events()
        if self.is_waiting and not self.transport.is_closing():
            self._watch_head()
        else:
            self._unwatch_head()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _longest_waiting(self) -> Protocol:
        """Return the connection without a request that is the oldest; this one where all have requests."""
        others = [each for each in self.connections if isinstance(each, Protocol) and each is not self]
        return min((each for each in others if each.is_waiting), key=lambda each: each._began, default=self)


@cache
def most_connections() -> int:
    """Return how many connections there may be at once, by what the system lets this process have open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, files - OTHER_FILES))


class JoinedWrites:
    """A transport that sends what is written until the event loop goes on as one piece.

    Sent apart, an answer's head and its body take two calls of the system, and wake the client twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send some bytes, soon."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Send what is held, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        """Return everything else of the transport."""
        return getattr(self._transport, name)
