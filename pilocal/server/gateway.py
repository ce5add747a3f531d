"""What every request passes: access, limits, routing, the engine, metrics, and the request log."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import quote

from pilocal.errors import RunError
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.server.access import PATHS_WITHOUT_KEY, Access
from pilocal.server.asking import Asking
from pilocal.server.confidence import ConfidenceFallback, confidence
from pilocal.server.embeddings import EMBEDDING, EmbeddingRequest, read_embedding_request
from pilocal.server.engines import Engines
from pilocal.server.metrics import Metrics
from pilocal.server.options import ServeOptions
from pilocal.server.queue import Queue
from pilocal.server.refusal import Refusal, server_error
from pilocal.server.reply import Reply, with_cors
from pilocal.server.request import CHAT, EMBEDDINGS, PATHS, RESPONSES, ClientRequest, read_request
from pilocal.server.request_log import RequestLogEntry
from pilocal.server.responses_request import reworded
from pilocal.server.responses_wire import ResponsesWire
from pilocal.server.routing import FULL_PROMPT, STRENGTH_HEADER, Route, Router, read_strength
from pilocal.server.shadow import Shadow
from pilocal.server.wire import Teller, Wire

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""The status, known from nginx, of a request whose client did not wait for the answer."""
LARGEST_BODY = 4 * 2**20
"""Bytes of the largest request."""
LARGEST_DISCARDED_BODY = 64 * 2**20
"""Bytes that are read and discarded of a larger one, so that its client gets to read the refusal."""
BODY_SECONDS = 60
"""Seconds within which a request's body has to arrive."""
LONG_BODY = 16 * 2**10
"""Bytes from which a request is read beside the event loop, which goes on meanwhile."""
FORMS = (b'"grammar"', b'"json_schema"', b'"tools"')
"""Of a request with such a field the form of its answer is read beside the event loop, too: it may take a second."""
ONE_MODEL = "/v1/models/"
"""What a model's name follows."""
GET_PATHS = (*PATHS_WITHOUT_KEY, "/metrics", "/v1/models", "/shadow")
"""The paths that are fetched with GET; the others take POST."""


@dataclass(frozen=True, slots=True)
class Watch:
    """How the answers of adapters are watched."""

    thresholds: Mapping[str, float]
    """By task: how sure an adapter must be of an answer, else the base gives it with the full prompt."""
    metrics: Mapping[str, Metric]
    """By task: what compares shadow requests' answers, beside whether they are the same text."""


class Gateway:
    """The ASGI app: requests for an answer are routed, answered, counted and logged, all others go to `pages`.

    A context manager, which frees the engines.
    """

    def __init__(
        self,
        pages: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        engines: Engines,
        router: Router,
        metrics: Metrics,
        watch: Watch,
        access: Access,
        options: ServeOptions,
        log: Callable[[RequestLogEntry], object],
    ) -> None:
        self._pages = pages
        self._engines = engines
        self._router = router
        self._queue = queue = Queue(1 if options.exact else options.parallel, options.queue, metrics.set_waiting)
        shared: dict[str, Any] = {"router": router, "engines": engines}
        self._fallback = ConfidenceFallback(watch.thresholds, count=metrics.count_unsure, **shared)
        count = metrics.count_shadow
        self._shadow = Shadow(options.shadow_share, watch.metrics, queue=queue, count=count, **shared)
        self._metrics = metrics
        self._access = access
        self._log = log
        self._log_contents = options.log_contents

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engines.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] == "OPTIONS" and "transfer-encoding" not in headers:
            await Reply(send).empty(self._access.preflight_headers(headers))
            return
        send = with_cors(send, self._access.response_headers(headers))
        scope["path"] = path = _plain_path(scope["path"])
        state = _RequestState(path)
        reply = Reply(send)
        try:
            _check_body(headers)
            self._access.check(path, headers)
            _check_path(path, scope["method"])
            if path not in PATHS:
                await self._pages(scope, receive, send)
                return
            body = await _read_in_time(receive)
            if body is None:
                state.status = CLIENT_CLOSED_REQUEST
            else:
                await self._answer(state, headers.get("x-pilocal-fallback"), body, scope, receive, reply)
        except Refusal as refusal:
            state.refuse(refusal)
            await reply.refuse(refusal)
        except Exception:
            logging.getLogger(__name__).exception("%s failed", path)
            failed = server_error("The server failed; its log says why.")
            state.refuse(failed)
            await reply.refuse(failed)
        finally:
            if path in PATHS:
                self._record(state)

    async def _answer(
        self, state: _RequestState, fallback: str | None, body: bytes, scope: Scope, receive: Receive, reply: Reply
    ) -> None:
        """Have the request answered, unless the client hangs up."""
        cancelled = threading.Event()
        watcher = asyncio.create_task(_cancel_on_disconnect(receive, cancelled))
        try:
            with self._queue.admit():
                full_prompt = _wants_full_prompt(fallback)
                strength = read_strength(_given(scope, STRENGTH_HEADER))
                if state.path == EMBEDDINGS:
                    self._router.check_embedding(full_prompt=full_prompt, strength=strength)
                    await self._embed(state, body, cancelled, reply)
                else:
                    state.asking = await self._routed(state, body, full_prompt, strength, cancelled)
                    await self._run(state, state.asking, cancelled, reply)
            state.ended = time.perf_counter()
            await reply.end()
            if state.asking is not None:
                self._shadow.follow(state.path, state.asking)
        finally:
            watcher.cancel()
            state.status = CLIENT_CLOSED_REQUEST if cancelled.is_set() else reply.status
            cancelled.set()  # whatever happened, nobody waits for more

    async def _routed(
        self, state: _RequestState, body: bytes, full_prompt: bool, strength: float | None, cancelled: threading.Event
    ) -> Asking:
        """Read and route a request for an answer."""
        aside = len(body) > LONG_BODY or any(form in body for form in FORMS)
        read = partial(read_request, state.path, body, self._engines.tokenizer.size, self._router.family)
        client = await _worked(read, aside=aside)
        state.stream = bool(client.body.get("stream"))
        route = partial(self._router.route, state.path, client.body, full_prompt=full_prompt, strength=strength)
        try:
            found = await _worked(route, aside=aside)
        except Refusal as refusal:
            raise (reworded(refusal) if state.path == RESPONSES else refusal) from None
        return Asking(found, client, cancelled, watched=self._fallback.watches(found))

    async def _embed(self, state: _RequestState, body: bytes, cancelled: threading.Event, reply: Reply) -> None:
        """Have texts embedded."""
        engines, names = self._engines, tuple(self._engines)
        sizes = {"context": self._router.context, "width": engines.embeddings.width}
        read = partial(read_embedding_request, body, engines.tokenizer, names=names, **sizes)
        state.embedding = request = await _worked(read, aside=len(body) > LONG_BODY)
        try:
            found = await engines.embeddings.response(request, cancelled)
        except RunError as error:
            raise server_error(str(error)) from None
        if found is not None:
            reply.add(
                {"X-Pilocal-Task": BASE, "X-Pilocal-Arm": EMBEDDING, "X-Pilocal-Prompt-Tokens": str(request.tokens)}
            )
            await reply.text(found)

    async def _run(self, state: _RequestState, asking: Asking, cancelled: threading.Event, reply: Reply) -> None:
        """Have a routed request answered; one that may fall back is whole before anything of it is told."""
        await asking.begin(self._engines, self._router.context, self._router.family)
        if self._fallback.watches(asking.route):
            settled = await self._fallback.settle(asking)
            state.confidence, state.asking, asking = confidence(asking), settled, settled
        route = asking.route
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
        teller = self._teller(state.path, route, asking.client)
        if route.body.get("stream"):
            await asking.first_news()
            if not cancelled.is_set():
                await reply.stream(asking.parts(teller), teller.failed)
        else:
            await asking.all()
            if not cancelled.is_set():
                await reply.json(asking.whole(teller))

    def _teller(self, path: str, route: Route, client: ClientRequest) -> Teller:
        """Return what writes the answers to a request."""
        tokenizer, count = self._engines.tokenizer, route.prompt_tokens
        if path == RESPONSES:
            return ResponsesWire(model=route.task, prompt_tokens=count, tokenizer=tokenizer, sent=client.sent)
        return Wire(
            chat=path == CHAT,
            model=route.task,
            prompt_tokens=count,
            tokenizer=tokenizer,
            echo=route.body["prompt"] if route.body.get("echo") else "",
            usage=bool(route.body.get("stream_options", {}).get("include_usage")),
        )

    def _record(self, state: _RequestState) -> None:
        """Count and log a finished request."""
        entry = state.entry()
        if self._log_contents and state.asking:
            tokens = [token for answer in state.asking.answers for token in answer.tokens]
            answer = self._engines.tokenizer.text(tokens).decode(errors="replace")
            body = state.asking.route.body
            entry = replace(entry, prompt=body.get("messages", body.get("prompt")), answer=answer)
        if self._log_contents and state.embedding:
            entry = replace(entry, prompt=state.embedding.said)
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
    asking: Asking | None = None
    embedding: EmbeddingRequest | None = None
    confidence: float | None = None

    def refuse(self, refusal: Refusal) -> None:
        """Record a refusal."""
        error = refusal.body["error"]
        self.status, self.error = refusal.status, error["code"] or error["type"]

    def entry(self) -> RequestLogEntry:
        """Return what is logged and counted."""
        ended = time.perf_counter() if self.ended is None else self.ended
        entry = RequestLogEntry(
            time=self.received.isoformat(timespec="milliseconds"),
            path=self.path,
            status=self.status,
            stream=self.stream,
            seconds=ended - self.began,
            error=self.error,
        )
        if self.embedding is not None:
            return replace(entry, task=BASE, arm=EMBEDDING, prompt_tokens=self.embedding.tokens)
        if self.asking is None:
            return entry
        route, answers = self.asking.route, self.asking.answers
        firsts = [answer.first_token_time for answer in answers if answer.first_token_time is not None]
        return replace(
            entry,
            task=route.task,
            arm=route.arm,
            prompt_tokens=route.prompt_tokens,
            completion_tokens=sum(len(answer.tokens) for answer in answers),
            saved_tokens=route.saved_tokens,
            adapter_scale=route.strength,
            near_miss=route.near_miss,
            confidence=self.confidence,
            first_token_seconds=min(firsts) - self.began if firsts else None,
        )


def _check_body(headers: Mapping[str, str]) -> None:
    """Raise Refusal for a body whose end is told in two ways, as a proxy may see another request where it ends for us.

    And for one that is packed.
    """
    if (packed := headers.get("content-encoding", "identity")) != "identity":
        problem = f"Content-Encoding: {packed} is not unpacked here; send the body as it is."
        raise Refusal(415, problem, code="unsupported_encoding")
    if "content-length" in headers and "transfer-encoding" in headers:
        problem = "A request has Content-Length or Transfer-Encoding, not both."
        raise Refusal(400, problem, code="invalid_length", headers={"Connection": "close"})


def _plain_path(path: str) -> str:
    """Return the path that a client means: without the host, as through a proxy, and without empty parts.

    >>> _plain_path("http://127.0.0.1:8000/v1/models"), _plain_path("//v1/models/"), _plain_path("/")
    ('/v1/models', '/v1/models', '/')
    """
    if path.startswith(("http://", "https://")):
        path = "/".join(path.split("/")[3:])
    return "/" + "/".join(part for part in path.split("/") if part)


def _check_path(path: str, method: str) -> None:
    """Raise Refusal for what this server does not offer."""
    allowed = (
        {"POST"}
        if path in PATHS
        else {"GET", "HEAD"}
        if path in GET_PATHS or path.startswith(ONE_MODEL)
        else set[str]()
    )
    if not allowed:
        end = next((known for known in PATHS if path.endswith(known.removeprefix("/v1"))), None)
        fix = f" It is at {end}: the base URL of a client ends with one /v1." if end else ""
        raise Refusal(404, f"There is nothing at {path}.{fix}", code="unknown_url")
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


async def _read_in_time(receive: Receive) -> bytes | None:
    """Return what `_read` returns; raises Refusal when the body takes too long to arrive, too."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(receive)
    except TimeoutError:
        problem = f"The body did not arrive within {BODY_SECONDS} s."
        raise Refusal(408, problem, code="request_timeout", headers={"Connection": "close"}) from None


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


async def _cancel_on_disconnect(receive: Receive, cancelled: threading.Event) -> None:
    """Cancel the answers once the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancelled.set()


async def _worked(work: Callable[[], T], *, aside: bool) -> T:
    """Return what some work returns, done beside the event loop if it may be long."""
    return await asyncio.to_thread(work) if aside else work()
