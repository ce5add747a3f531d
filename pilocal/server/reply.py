"""What the client gets: llama-cpp-python's response with more headers, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from pilocal.server.refusal import Refusal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def with_cors(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a `send` that puts these headers in the place of llama-cpp-python's, which let every page read."""
    ours = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            theirs = [
                pair
                for pair in message.get("headers", ())
                if not pair[0].lower().startswith((b"access-control-", b"vary"))
            ]
            message = {**message, "headers": [*theirs, *ours]}
        await send(message)

    return sending


class Reply:
    """Passes a response on, but holds back its last part until `end`.

    So the request has left the queue by the time its client has the whole answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._rewrite: Callable[[bytes], bytes] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._last: Message | None = None
        self.status = 0
        """HTTP's; 0 before the response has begun."""

    def add(self, headers: Mapping[str, str]) -> None:
        """Add headers to the response, before it begins."""
        self._headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]

    def rewrite(self, rewrite: Callable[[bytes], bytes]) -> None:
        """Have each part of the response's body rewritten."""
        self._rewrite = rewrite

    async def send(self, message: Message) -> None:
        """Pass on one message of the response, but keep the last."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        elif not message.get("more_body", False):
            self._last = message
            return
        elif self._rewrite is not None:
            message = {**message, "body": self._rewrite(message["body"])}
        await self._send(message)

    async def end(self) -> None:
        """Send the last part."""
        if self._last is not None:
            await self._send(self._last)

    async def empty(self, headers: Mapping[str, str]) -> None:
        """Send a response without a body."""
        self.add(headers)
        await self.send({"type": "http.response.start", "status": 204})
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal, unless a response has begun."""
        if self.status:
            return
        body = json.dumps(refusal.body).encode()
        self.add({"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers})
        await self.send({"type": "http.response.start", "status": refusal.status})
        await self._send({"type": "http.response.body", "body": body})
