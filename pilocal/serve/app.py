"""llama-cpp-python's own FastAPI app, extended: many tasks on one base, and a door before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.errors import InputError
from pilocal.run.shipped import Shipped
from pilocal.serve.chat import Tokenizer
from pilocal.serve.gateway import Door
from pilocal.serve.metrics import Metrics
from pilocal.serve.models import Models, model_settings, refusing
from pilocal.serve.page import read_page
from pilocal.serve.queue import Queue
from pilocal.serve.request_log import Entry
from pilocal.serve.routing import Planner
from pilocal.serve.weights import choose_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How tasks are served."""

    context: int = 2048
    """Longest prompt and answer together, in tokens."""
    threads: int | None = None
    """llama.cpp's; its own choice when None: half of the cores for an answer, all of them for a prompt."""
    queue: int = 16
    """Requests that may wait behind the one at work."""
    fallback_share: float = 0.0
    """Share of a task's requests that the base answers with the full prompt."""
    key: str | None = None
    """What clients must send as API key; None where nobody needs one."""
    contents: bool = False
    """Log what is asked and answered, too."""


def make_app(tasks: Sequence[Shipped], options: Options, log: Callable[[Entry], None]) -> Any:
    """Check and load the tasks' files and return the ASGI app; `log` is told of every finished request.

    Raises InputError, ModelError, RunError, or Faults, for files that are damaged, foreign or of different bases.
    """
    from llama_cpp.server import app as llama_app
    from llama_cpp.server.settings import ServerSettings

    if "CONFIG_FILE" in os.environ:
        fix = "unset it"
        raise InputError("CONFIG_FILE", "llama-cpp-python would take its settings from this variable", fix=fix)
    path = choose_base(tasks)
    settings = model_settings(path, context=options.context, threads=options.threads)
    with refusing(path):
        app = llama_app.create_app(
            server_settings=ServerSettings.model_construct(interrupt_requests=False), model_settings=[settings]
        )
        loaded: Any = llama_app._llama_proxy
        base = loaded()
    models = Models(base, tasks, context=options.context, threads=options.threads)
    app.state.base = loaded  # else the base would be freed with it
    llama_app._llama_proxy = models  # what the routes ask for weights
    metrics = Metrics()
    tokenizer = Tokenizer(base)
    _add_routes(app, models, metrics)
    return Door(
        app,
        models=models,
        planner=Planner(tasks, tokenizer, context=options.context, share=options.fallback_share),
        queue=Queue(options.queue, metrics.wait),
        metrics=metrics,
        key=options.key,
        log=log,
        contents=options.contents,
    )


def _add_routes(app: Any, models: Models, metrics: Metrics) -> None:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    page, policy = read_page()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(models)})

    async def numbers(request: Request) -> Response:
        text, kind = metrics.page()
        return Response(text, media_type=kind)

    async def home(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    for path, endpoint in (("/health", health), ("/metrics", numbers), ("/", home)):
        app.add_route(path, endpoint, methods=["GET"])
