"""What stands between a client and llama-cpp-python's routes: key, limits, plan, queue, and what is said of it all."""

from __future__ import annotations

import asyncio
import hmac
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

from pilocal.serve.job import JOB, Job
from pilocal.serve.metrics import Metrics
from pilocal.serve.models import CLIENT_CLOSED_REQUEST, Models
from pilocal.serve.queue import Queue
from pilocal.serve.refusal import Refusal, server_error
from pilocal.serve.reply import Reply
from pilocal.serve.request import CHAT, COMPLETION, TYPES, read_request
from pilocal.serve.request_log import Entry
from pilocal.serve.routing import FULL_PROMPT, Plan, Planner

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_BODY = 4 * 2**20
"""Bytes of the largest request."""
PATIENCE = 64 * 2**20
"""Bytes that are read, and thrown away, of a larger one, so that its client hears the answer."""
OPEN = ("/", "/health")
"""What needs no key."""
PAGES = (*OPEN, "/metrics", "/v1/models")
"""What is fetched with GET."""


class Door:
    """An ASGI middleware; every request passes it, and those for an answer are planned, queued, counted and logged."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        models: Models,
        planner: Planner,
        queue: Queue,
        metrics: Metrics,
        key: str | None,
        log: Callable[[Entry], None],
        contents: bool,
    ) -> None:
        self._app = app
        self._models = models
        self._planner = planner
        self._queue = queue
        self._metrics = metrics
        self._key = key
        self._log = log
        self._contents = contents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        visit = _Visit(path, headers)
        reply = Reply(send)
        try:
            self._authorize(path, headers)
            _check_path(path, scope["method"])
            if path not in TYPES:
                await self._app(scope, receive, send)
                return
            body = await _read(receive)
            if body is None:
                visit.status = CLIENT_CLOSED_REQUEST
            elif path in (CHAT, COMPLETION):
                await self._answer(visit, body, scope, receive, reply)
            else:
                request = read_request(path, body, self._models.base.n_vocab())
                self._planner.name(request)
                await self._app(*_again(scope, request), send)
                return
        except Refusal as refusal:
            visit.refused(refusal)
            await reply.refuse(refusal)
        except Exception:
            logging.getLogger(__name__).exception("%s failed", path)
            failed = server_error("The server failed; its log says why.")
            visit.refused(failed)
            await reply.refuse(failed)
        finally:
            if path in (CHAT, COMPLETION):
                self._note(visit)

    def _authorize(self, path: str, headers: Mapping[str, str]) -> None:
        if self._key is None or path in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return
        what = "Incorrect API key provided." if given else "You didn't provide an API key."
        raise Refusal(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _answer(self, visit: _Visit, body: bytes, scope: Scope, receive: Receive, reply: Reply) -> None:
        """Plan the request, wait for its turn, and have it answered, unless the client hangs up."""
        import anyio
        from starlette.concurrency import run_in_threadpool

        job = Job(model="")
        line = anyio.CancelScope()
        watch = asyncio.create_task(_watch(receive, job, line))
        try:
            with self._queue.place():
                full = _wants_full_prompt(visit.headers)
                request = await run_in_threadpool(read_request, visit.path, body, self._models.base.n_vocab())
                visit.stream = bool(request.get("stream"))
                plan = await run_in_threadpool(partial(self._planner.plan, visit.path, request, full_prompt=full))
                visit.plan, visit.job, job.model = plan, job, plan.model
                async with AsyncExitStack() as turn:
                    with line:  # only the waiting can be left; an answer that has begun ends itself
                        await turn.enter_async_context(self._queue.turn())
                    if not job.cancelled.is_set():
                        await self._run(plan, job, scope, reply)
            visit.ended = time.perf_counter()
            await reply.end()
        finally:
            watch.cancel()
            visit.status = CLIENT_CLOSED_REQUEST if job.cancelled.is_set() else reply.status

    async def _run(self, plan: Plan, job: Job, scope: Scope, reply: Reply) -> None:
        """Hand a planned request to llama-cpp-python's route."""
        reply.add(
            {
                "X-Pilocal-Task": quote(plan.task),
                "X-Pilocal-Arm": plan.arm,
                "X-Pilocal-Prompt-Tokens": str(plan.prompt_tokens),
                "X-Pilocal-Prompt-Tokens-Saved": str(plan.saved_tokens),
            }
        )
        token = JOB.set(job)
        try:
            await self._app(*_again(scope, plan.body), reply.send)
        finally:
            JOB.reset(token)

    def _note(self, visit: _Visit) -> None:
        """Count and log a finished request."""
        entry = visit.entry()
        if self._contents and visit.plan and visit.job:
            answer = self._models.base.detokenize(visit.job.tokens).decode(errors="replace")
            body = visit.plan.body
            entry = replace(entry, prompt=body.get("messages", body.get("prompt")), answer=answer)
        self._metrics.count(entry)
        self._log(entry)


@dataclass(slots=True)
class _Visit:
    """What becomes known of a request for an answer while it is at the door."""

    path: str
    headers: Mapping[str, str]
    came: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    status: int = 0
    error: str | None = None
    stream: bool = False
    plan: Plan | None = None
    job: Job | None = None

    def refused(self, refusal: Refusal) -> None:
        """Take note of a refusal."""
        error = refusal.body["error"]
        self.status, self.error = refusal.status, error["code"] or error["type"]

    def entry(self) -> Entry:
        """Return what is logged and counted."""
        plan, job = self.plan, self.job
        ended = time.perf_counter() if self.ended is None else self.ended
        first = job.first - self.began if job and job.first is not None else None
        return Entry(
            time=self.came.isoformat(timespec="milliseconds"),
            path=self.path,
            status=self.status,
            task=plan.task if plan else "",
            arm=plan.arm if plan else "",
            stream=self.stream,
            prompt_tokens=plan.prompt_tokens if plan else 0,
            completion_tokens=len(job.tokens) if job else 0,
            saved_tokens=plan.saved_tokens if plan else 0,
            first_token_seconds=first,
            seconds=ended - self.began,
            error=self.error,
        )


def _check_path(path: str, method: str) -> None:
    """Raise Refusal for what this server does not have; llama-cpp-python has more, which knows nothing of the queue."""
    allowed = {"POST"} if path in TYPES else {"GET", "HEAD"} if path in PAGES else set[str]()
    if not allowed:
        raise Refusal(404, f"There is nothing at {path}.", code="unknown_url")
    if method not in allowed | {"OPTIONS"}:
        raise Refusal(405, f"{path} takes {' and '.join(sorted(allowed))}.", headers={"Allow": ", ".join(allowed)})


def _wants_full_prompt(headers: Mapping[str, str]) -> bool:
    wanted = headers.get("x-pilocal-fallback")
    if wanted not in (None, FULL_PROMPT):
        raise Refusal(400, f"X-Pilocal-Fallback: the only value is {FULL_PROMPT}.", code="no_full_prompt")
    return wanted is not None


async def _read(receive: Receive) -> bytes | None:
    """Return the body, or None when the client hung up; raises Refusal when it is too large."""
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= PATIENCE:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= LARGEST_BODY:
            parts.append(part)
    if size > LARGEST_BODY:
        what = f"The body is larger than {LARGEST_BODY // 2**20} MiB."
        raise Refusal(413, what, code="request_too_large", headers={"Connection": "close"})
    return b"".join(parts)


async def _watch(receive: Receive, job: Job, line: Any) -> None:
    """Cancel the job, and its waiting in line, once the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancelled.set()
    line.cancel()


def _again(scope: Scope, request: Mapping[str, Any]) -> tuple[Scope, Receive]:
    """Return scope and receive of a request whose body was read already.

    It never hears of a client that hangs up: the job is cancelled then, and ends by itself.
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
