"""What the client gets: an answer, whole or as a stream, or a refusal."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from pilocal.server.refusal import Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def with_cors(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` that adds these headers to a response."""
    ours = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await send(message)

    return sending


class Reply:
    """Writes a response, but holds back its last part until `end`.

    So the request has left the queue by the time its client has the whole answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = []
        self._last = b""
        self._failed: Callable[[Refusal], bytes] | None = None
        self.status = 0
        """HTTP's; 0 before the response has begun."""

    def add(self, headers: Mapping[str, str]) -> None:
        """Add headers to the response, before it begins."""
        self._headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]

    async def json(self, body: Mapping[str, Any]) -> None:
        """Begin a response that is one JSON object."""
        await self.text(json.dumps(body, ensure_ascii=False).encode())

    async def text(self, body: bytes) -> None:
        """Begin a response that is JSON already."""
        self._last = body
        self.add({"Content-Type": "application/json", "Content-Length": str(len(self._last))})
        await self._begin(200)

    async def stream(self, parts: AsyncIterator[bytes], failed: Callable[[Refusal], bytes]) -> None:
        """Send a stream of server-sent events; `failed` returns the last of one that ends with a refusal."""
        self.add({"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store"})
        self._failed = failed
        await self._begin(200)
        async for part in parts:
            if self._last:
                await self._part(self._last)
            self._last = part

    async def end(self) -> None:
        """Send the last part."""
        if self.status:
            await self._send({"type": "http.response.body", "body": self._last})

    async def empty(self, headers: Mapping[str, str]) -> None:
        """Send a response without a body."""
        self.add(headers)
        await self._begin(204)
        await self.end()

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal; a stream that has begun ends with it."""
        body = json.dumps(refusal.body).encode()
        if self.status:
            self._last += self._failed(refusal) if self._failed else b""
        else:
            self._last = body
            length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            self.add({**length, **refusal.headers})
            await self._begin(refusal.status)
        await self.end()

    async def _begin(self, status: int) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": self._headers})

    async def _part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
