"""`pilocal watch`: a page of one run on this machine's own address; it reads the run folder and writes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.errors import InputError
from pilocal.server.access import Access, hosts_at
from pilocal.server.page import read_page
from pilocal.server.refusal import Refusal
from pilocal.server.server import listen
from pilocal.watch.picture import loss_picture
from pilocal.watch.state import State
from pilocal.watch.watcher import Watcher

HOST = "127.0.0.1"

EVERY = 1.0
"""Seconds between two looks at the folder, however many pages ask."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What a picture that is opened by itself may do: nothing but look as it was drawn."""


class Viewer:
    """What the pages of one watcher share: one look at a time, and the picture until there is something new to draw."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._lock = threading.Lock()
        self._state: State | None = None
        self._looked = 0.0
        self._drawn: tuple[object, bytes] | None = None

    def state(self) -> dict[str, Any]:
        """Return the keys of /state."""
        with self._lock:
            return asdict(self._look())

    def picture(self) -> bytes | None:
        """Return the losses as SVG, None before the first step; raises InputError where nothing can draw it."""
        with self._lock:
            state, stages = self._look(), self._watcher.series()
            if not any(stages):
                return None
            version = (state.training, [len(lines) for lines in stages])
            if self._drawn is None or self._drawn[0] != version:
                self._drawn = version, loss_picture(stages, f"{state.task}: {state.training}")
            return self._drawn[1]

    def _look(self) -> State:
        if self._state is None or time.monotonic() - self._looked >= EVERY:
            self._state, self._looked = self._watcher.look(), time.monotonic()
        return self._state


def make_app(viewer: Viewer, access: Access) -> Any:
    """Return the ASGI app: the page at /, what it shows at /state, the picture at /loss.svg."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    page, policy = read_page("pilocal.watch", "'self' data:")

    def home(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy} | HEADERS
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    def state(request: Request) -> Response:
        return JSONResponse(viewer.state(), headers=HEADERS)

    def picture(request: Request) -> Response:
        try:
            drawn = viewer.picture()
        except InputError as error:
            return PlainTextResponse(f"{error.problem}; {error.fix}\n", 501, headers=HEADERS)
        if drawn is None:
            return PlainTextResponse("no step was taken yet\n", 404, headers=HEADERS)
        return Response(
            drawn, media_type="image/svg+xml", headers={"Content-Security-Policy": PICTURE_POLICY} | HEADERS
        )

    pages = {"/": home, "/state": state, "/loss.svg": picture}
    routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in pages.items()]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, access=access)])


class _Guard:
    """Lets nobody in but this machine's own pages: not a page of another site, nor a name pointed at this machine."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        app = self._app
        if scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                self._access.check(scope["path"], headers)
            except Refusal as refusal:
                text = "only this machine's own pages may look: open the address that `pilocal watch` prints\n"
                app = PlainTextResponse(text, refusal.status, headers=HEADERS)
        await app(scope, receive, send)


def watch(run: Path, *, port: int, ready: Callable[[str], object]) -> None:
    """Show a run on a page of 127.0.0.1 until the process is interrupted; `ready` is called with its address.

    Raises RunError when no run has begun there, InputError when the port cannot be taken, and KeyboardInterrupt once an
    interrupted server has shut down.
    """
    import uvicorn

    viewer = Viewer(Watcher(run))
    try:
        taken = listen(HOST, port, loopback_only=True)
    except InputError as error:
        raise InputError(error.where, error.problem, fix="choose another with --port; 0 takes a free one") from None
    with taken as listener:
        app = make_app(viewer, Access(hosts=hosts_at(HOST, HOST)))
        ready(f"http://{HOST}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            app, access_log=False, ws="none", lifespan="off", log_level="warning", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[listener])
