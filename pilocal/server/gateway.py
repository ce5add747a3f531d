"""The gateway between clients and llama-cpp-python's routes: access, limits, routing, queue, metrics, request log."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from pilocal.server.access import PATHS_WITHOUT_KEY, Access
from pilocal.server.job import CURRENT_JOB, Job
from pilocal.server.metrics import Metrics
from pilocal.server.models import CLIENT_CLOSED_REQUEST, Models
from pilocal.server.queue import Queue
from pilocal.server.refusal import Refusal, server_error
from pilocal.server.reply import Reply, with_cors
from pilocal.server.request import CHAT, COMPLETION, TYPES, read_request
from pilocal.server.request_log import RequestLogEntry
from pilocal.server.routing import FULL_PROMPT, STRENGTH_HEADER, Route, Router, read_strength
from pilocal.server.usage import StreamedUsage, wants_usage

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_BODY = 4 * 2**20
"""Bytes of the largest request."""
LARGEST_DISCARDED_BODY = 64 * 2**20
"""Bytes that are read and discarded of a larger one, so that its client gets to read the refusal."""
GET_PATHS = (*PATHS_WITHOUT_KEY, "/metrics", "/v1/models")
"""The paths that are fetched with GET; the others take POST."""


class Gateway:
    """ASGI middleware that every request passes; those for an answer are routed, queued, counted and logged."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        models: Models,
        router: Router,
        queue: Queue,
        metrics: Metrics,
        access: Access,
        log: Callable[[RequestLogEntry], object],
        log_contents: bool,
    ) -> None:
        self._app = app
        self._models = models
        self._router = router
        self._queue = queue
        self._metrics = metrics
        self._access = access
        self._log = log
        self._log_contents = log_contents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] == "OPTIONS":
            await Reply(send).empty(self._access.preflight_headers(headers))
            return
        send = with_cors(send, self._access.response_headers(headers))
        path = scope["path"]
        state = _RequestState(path)
        reply = Reply(send)
        try:
            self._access.check(path, headers)
            _check_path(path, scope["method"])
            if path not in TYPES:
                await self._app(scope, receive, send)
                return
            body = await _read(receive)
            if body is None:
                state.status = CLIENT_CLOSED_REQUEST
            elif path in (CHAT, COMPLETION):
                await self._answer(state, headers.get("x-pilocal-fallback"), body, scope, receive, reply)
            else:
                request = read_request(path, body, self._models.base.n_vocab())
                self._router.name(request)
                await self._app(*_replayed(scope, request), send)
                return
        except Refusal as refusal:
            state.refuse(refusal)
            await reply.refuse(refusal)
        except Exception:
            logging.getLogger(__name__).exception("%s failed", path)
            failed = server_error("The server failed; its log says why.")
            state.refuse(failed)
            await reply.refuse(failed)
        finally:
            if path in (CHAT, COMPLETION):
                self._record(state)

    async def _answer(
        self, state: _RequestState, fallback: str | None, body: bytes, scope: Scope, receive: Receive, reply: Reply
    ) -> None:
        """Route the request, wait for its turn, and have it answered, unless the client hangs up."""
        import anyio
        from starlette.concurrency import run_in_threadpool

        job = Job(model="")
        waiting = anyio.CancelScope()
        watcher = asyncio.create_task(_cancel_on_disconnect(receive, job, waiting))
        try:
            with self._queue.admit():
                full_prompt = _wants_full_prompt(fallback)
                strength = read_strength(_given(scope, STRENGTH_HEADER))
                request = await run_in_threadpool(read_request, state.path, body, self._models.base.n_vocab())
                state.stream = bool(request.get("stream"))
                route = await run_in_threadpool(
                    partial(self._router.route, state.path, request, full_prompt=full_prompt, strength=strength)
                )
                state.route, state.job, job.model = route, job, route.model
                job.strength = 1.0 if route.strength is None else route.strength
                async with AsyncExitStack() as turn:
                    with waiting:  # only this can be cancelled; an answer that has begun ends itself
                        await turn.enter_async_context(self._queue.turn())
                    if not job.cancelled.is_set():
                        await self._run(route, job, scope, reply)
            state.ended = time.perf_counter()
            await reply.end()
        finally:
            watcher.cancel()
            state.status = CLIENT_CLOSED_REQUEST if job.cancelled.is_set() else reply.status

    async def _run(self, route: Route, job: Job, scope: Scope, reply: Reply) -> None:
        """Pass a routed request to llama-cpp-python's route."""
        reply.add(
            {
                "X-Pilocal-Task": quote(route.task),
                "X-Pilocal-Arm": route.arm,
                "X-Pilocal-Prompt-Tokens": str(route.prompt_tokens),
                "X-Pilocal-Prompt-Tokens-Saved": str(route.saved_tokens),
            }
        )
        if route.strength is not None:
            reply.add({STRENGTH_HEADER: str(route.strength)})
        if wants_usage(route.body):
            reply.rewrite(StreamedUsage(lambda: (route.prompt_tokens, len(job.tokens))))
        token = CURRENT_JOB.set(job)
        try:
            await self._app(*_replayed(scope, route.body), reply.send)
        finally:
            CURRENT_JOB.reset(token)

    def _record(self, state: _RequestState) -> None:
        """Count and log a finished request."""
        entry = state.entry()
        if self._log_contents and state.route and state.job:
            answer = self._models.base.detokenize(state.job.tokens).decode(errors="replace")
            body = state.route.body
            entry = replace(entry, prompt=body.get("messages", body.get("prompt")), answer=answer)
        self._metrics.count(entry)
        self._log(entry)


@dataclass(slots=True)
class _RequestState:
    """What is known so far of a request for an answer."""

    path: str
    received: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    status: int = 0
    error: str | None = None
    stream: bool = False
    route: Route | None = None
    job: Job | None = None

    def refuse(self, refusal: Refusal) -> None:
        """Record a refusal."""
        error = refusal.body["error"]
        self.status, self.error = refusal.status, error["code"] or error["type"]

    def entry(self) -> RequestLogEntry:
        """Return what is logged and counted."""
        route, job = self.route, self.job
        ended = time.perf_counter() if self.ended is None else self.ended
        first = job.first_token_time - self.began if job and job.first_token_time is not None else None
        return RequestLogEntry(
            time=self.received.isoformat(timespec="milliseconds"),
            path=self.path,
            status=self.status,
            task=route.task if route else "",
            arm=route.arm if route else "",
            stream=self.stream,
            prompt_tokens=route.prompt_tokens if route else 0,
            completion_tokens=len(job.tokens) if job else 0,
            saved_tokens=route.saved_tokens if route else 0,
            adapter_scale=route.strength if route else None,
            near_miss=route.near_miss if route else False,
            first_token_seconds=first,
            seconds=ended - self.began,
            error=self.error,
        )


def _check_path(path: str, method: str) -> None:
    """Raise Refusal for what this server does not offer; llama-cpp-python's other routes would bypass the queue."""
    allowed = {"POST"} if path in TYPES else {"GET", "HEAD"} if path in GET_PATHS else set[str]()
    if not allowed:
        raise Refusal(404, f"There is nothing at {path}.", code="unknown_url")
    if method not in allowed:
        raise Refusal(405, f"{path} takes {' and '.join(sorted(allowed))}.", headers={"Allow": ", ".join(allowed)})


def _wants_full_prompt(fallback: str | None) -> bool:
    """Read the header X-Pilocal-Fallback; raises Refusal when it has another value."""
    if fallback not in (None, FULL_PROMPT):
        raise Refusal(400, f"X-Pilocal-Fallback: the only value is {FULL_PROMPT}.", code="no_full_prompt")
    return fallback is not None


def _given(scope: Scope, header: str) -> str | None:
    """Return a header of a request; one that is given several times is a list, as proxies make of it."""
    name = header.lower().encode()
    values = [value.decode("latin-1") for given, value in scope["headers"] if given == name]
    return ", ".join(values) if values else None


async def _read(receive: Receive) -> bytes | None:
    """Return the body, or None when the client hung up; raises Refusal when it is too large."""
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= LARGEST_DISCARDED_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= LARGEST_BODY:
            parts.append(part)
    if size > LARGEST_BODY:
        problem = f"The body is larger than {LARGEST_BODY // 2**20} MiB."
        raise Refusal(413, problem, code="request_too_large", headers={"Connection": "close"})
    return b"".join(parts)


async def _cancel_on_disconnect(receive: Receive, job: Job, waiting: Any) -> None:
    """Cancel the job, and its waiting in the queue, once the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancelled.set()
    waiting.cancel()


def _replayed(scope: Scope, request: Mapping[str, Any]) -> tuple[Scope, Receive]:
    """Return scope and receive of a request whose body has been read already.

    They never report that the client hung up: the job is then cancelled, and ends by itself.
    """
    body = json.dumps(request).encode()
    kept = [
        pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type", b"transfer-encoding")
    ]
    headers = [*kept, (b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return {**scope, "headers": headers}, receive
