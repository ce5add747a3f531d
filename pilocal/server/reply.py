"""What the client gets: llama-cpp-python's response with more headers, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from pilocal.server.refusal import Refusal

Message = MutableMapping[str, Any]


class Reply:
    """Passes a response on, but holds back its last part until `end`.

    So the request has left the queue by the time its client has the whole answer.
    """

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self._send = send
        self._headers: list[tuple[bytes, bytes]] = []
        self._last: Message | None = None
        self.status = 0
        """HTTP's; 0 before the response has begun."""

    def add(self, headers: Mapping[str, str]) -> None:
        """Add headers to the response, before it begins."""
        self._headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def send(self, message: Message) -> None:
        """Pass on one message of the response, but keep the last."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        elif not message.get("more_body", False):
            self._last = message
            return
        await self._send(message)

    async def end(self) -> None:
        """Send the last part."""
        if self._last is not None:
            await self._send(self._last)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal, unless a response has begun."""
        if self.status:
            return
        body = json.dumps(refusal.body).encode()
        self.add({"Content-Type": "application/json", "Content-Length": str(len(body)), **refusal.headers})
        await self.send({"type": "http.response.start", "status": refusal.status})
        await self._send({"type": "http.response.body", "body": body})
