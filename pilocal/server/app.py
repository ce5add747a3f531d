"""llama-cpp-python's own FastAPI app, extended: many tasks on one base, behind a gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.llamacpp.chat import check_probes
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.run_folder.shipped import Shipped
from pilocal.server.access import Access
from pilocal.server.chat import TokenCounter
from pilocal.server.gateway import Gateway
from pilocal.server.llama_server import answer_with, make_llama_app
from pilocal.server.metrics import Metrics
from pilocal.server.models import Models
from pilocal.server.options import ServeOptions
from pilocal.server.page import read_page
from pilocal.server.queue import Queue
from pilocal.server.request_log import RequestLogEntry
from pilocal.server.routing import Router
from pilocal.server.weights import choose_base


def make_app(
    tasks: Sequence[Shipped], options: ServeOptions, access: Access, log: Callable[[RequestLogEntry], object]
) -> Any:
    """Check and load the tasks' files and return the ASGI app; `log` is called with every finished request.

    Raises InputError, ModelError, RunError, or Faults, for files that are damaged, foreign or of different bases.
    """
    path, template = choose_base(tasks)
    probes: dict[tuple[Path, str | None], list[Mapping[str, Any]]] = {}  # one vocabulary for tasks that share a base
    for task in tasks:
        probes.setdefault((task.served_path.resolve(), task.served_template), []).extend(task.probes)
    for (file, written_by), chats in probes.items():
        check_probes(file, chats, written_by)
    app, base = make_llama_app(path, template, context=options.context, threads=options.threads)
    models = Models(base, tasks, context=options.context, threads=options.threads)
    answer_with(models)
    metrics = Metrics()
    _add_routes(app, models, metrics)
    counter = TokenCounter(Tokenizer(base.model), path, template)
    return Gateway(
        app,
        models=models,
        router=Router(tasks, counter, context=options.context, fallback_share=options.fallback_share),
        queue=Queue(options.queue, metrics.set_waiting),
        metrics=metrics,
        access=access,
        log=log,
        log_contents=options.log_contents,
    )


def _add_routes(app: Any, models: Models, metrics: Metrics) -> None:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    page, policy = read_page()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(models)})

    async def prometheus(request: Request) -> Response:
        text, media_type = metrics.exposition()
        return Response(text, media_type=media_type)

    async def home(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    for path, endpoint in (("/health", health), ("/metrics", prometheus), ("/", home)):
        app.add_route(path, endpoint, methods=["GET"])
