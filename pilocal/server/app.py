"""The application: many tasks on one base, behind a gateway, and the pages beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.llamacpp.chat import check_probes
from pilocal.run_folder.shared_base import choose_base
from pilocal.run_folder.shipped import Shipped
from pilocal.server.access import Access
from pilocal.server.agreement import serving_metrics
from pilocal.server.chat import PromptTokens
from pilocal.server.confidence import read_thresholds
from pilocal.server.engines import Engines
from pilocal.server.gateway import Gateway, Watch
from pilocal.server.metrics import Metrics
from pilocal.server.options import ServeOptions
from pilocal.server.page import read_page
from pilocal.server.refusal import no_such_model
from pilocal.server.request import SLOTS
from pilocal.server.request_log import RequestLogEntry
from pilocal.server.routing import Router


def make_app(
    tasks: Sequence[Shipped],
    options: ServeOptions,
    access: Access,
    log: Callable[[RequestLogEntry], object],
    warn: Callable[[str], object] = lambda text: None,
) -> Gateway:
    """Check and load the tasks' files and return the ASGI app; `log` is called with every finished request.

    `warn` is told what the options cannot do for a task. The weights are freed when the app is left, as a context
    manager. Raises InputError, ModelError, RunError, or Faults, for files that are damaged, foreign or of different
    bases, and for runs that lack what the options need.
    """
    watch = make_watch(tasks, options, warn)
    path, template = choose_base(tasks)
    probes: dict[tuple[Path, str | None], list[Mapping[str, Any]]] = {}  # one vocabulary for tasks that share a base
    for task in tasks:
        probes.setdefault((task.served_path.resolve(), task.served_template), []).extend(task.probes)
    for (file, written_by), chats in probes.items():
        check_probes(file, chats, written_by)
    engines = Engines(path, tasks, options)
    metrics = Metrics(engines)
    tokens = PromptTokens(engines.tokenizer, path, template)
    return Gateway(
        make_pages(engines, metrics, {task.name: task.slots for task in tasks}, shadow_share=options.shadow_share),
        engines=engines,
        router=Router(tasks, tokens, context=options.context, fallback_share=options.fallback_share),
        metrics=metrics,
        watch=watch,
        access=access,
        options=options,
        log=log,
    )


def make_watch(tasks: Sequence[Shipped], options: ServeOptions, warn: Callable[[str], object]) -> Watch:
    """Return how answers are watched; `warn` is told for which tasks not. Raises RunError, or Faults, as `make_app`."""
    thresholds = read_thresholds(tasks, warn) if options.fallback_on else {}
    return Watch(thresholds, serving_metrics(tasks, warn) if options.shadow_share else {})


def make_pages(engines: Engines, metrics: Metrics, slots: Mapping[str, Sequence[str]], *, shadow_share: float) -> Any:
    """Return the app that answers what is fetched: health, metrics, the models' names, agreement and the page.

    `slots` are the names of each task's.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    page, policy = read_page()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "models": list(engines)})

    def described(name: str) -> dict[str, Any]:
        more = {SLOTS: list(slots[name])} if slots.get(name) else {}
        return {"id": name, "object": "model", "created": 0, "owned_by": "pilocal"} | more

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in engines]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name in engines:
            return JSONResponse(described(name))
        refusal = no_such_model(name, list(engines))
        return JSONResponse(refusal.body, refusal.status)

    async def prometheus(request: Request) -> Response:
        text, media_type = metrics.exposition()
        return Response(text, media_type=media_type)

    async def shadow(request: Request) -> Response:
        return JSONResponse({"share": shadow_share, "tasks": metrics.tallies()})

    async def home(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    pages = {
        "/health": health,
        "/metrics": prometheus,
        "/v1/models": models,
        "/v1/models/{name}": model,
        "/shadow": shadow,
        "/": home,
    }
    return Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in pages.items()])
