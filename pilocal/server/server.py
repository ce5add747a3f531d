"""`pilocal serve`: where the app listens, and until when."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pilocal.errors import InputError
from pilocal.run_folder.shipped import read_shipped
from pilocal.server.access import Access, hosts_at
from pilocal.server.api_key import read_api_key
from pilocal.server.app import make_app
from pilocal.server.options import ServeOptions
from pilocal.server.request_log import RequestLogEntry
from pilocal.task.text import path_of

SWITCH = 0.0005
"""Seconds after which a thread that computes in Python lets another go on: the engine's batches last milliseconds."""


def serve(
    runs: str | Path | Sequence[str | Path],
    options: ServeOptions | None = None,
    *,
    log: Callable[[RequestLogEntry], object] = lambda entry: None,
    ready: Callable[[Sequence[str], int], object] = lambda names, port: None,
    warn: Callable[[str], object] = lambda text: None,
) -> None:
    """Answer OpenAI-compatible requests to finished runs, under http://HOST:PORT/v1, until the process is interrupted.

    The port is taken before anything is loaded; requests that arrive meanwhile wait. `ready` is called once all is
    loaded, with the names of the tasks and the port. `log` is called with every finished request, and `warn`, before
    anything is loaded, with what the options cannot do for a task.

    Raises RunError when a run has exported nothing; InputError when the port cannot be taken, the key file holds no
    key, or others could reach the server without a key; what `make_app` raises; and KeyboardInterrupt once an
    interrupted server has shut down.
    """
    import uvicorn

    from pilocal.server.protocol import Protocol

    options = options or ServeOptions()
    key = read_api_key(path_of(options.api_key_file)) if options.api_key_file else None
    paths = [runs] if isinstance(runs, str | Path) else runs
    tasks = [read_shipped(path_of(path)) for path in paths]
    with listen(options.host, options.port, loopback_only=key is None) as listener:
        hosts = hosts_at(listener.getsockname()[0], options.host)
        access = Access(key, origins=options.allow_origins, hosts=hosts)
        with make_app(tasks, options, access, log, warn) as app:
            ready([task.name for task in tasks], listener.getsockname()[1])
            # uvicorn would log the whole URL of a WebSocket, query and all.
            quiet: dict[str, Any] = {"access_log": False, "ws": "none", "lifespan": "off"}
            config = uvicorn.Config(app, http=Protocol, timeout_graceful_shutdown=options.grace, **quiet)
            logging.getLogger("uvicorn.error").addFilter(is_fault)
            sys.setswitchinterval(SWITCH)
            uvicorn.Server(config).run(sockets=[listener])


def is_fault(record: logging.LogRecord) -> bool:
    """Tell whether a line of uvicorn's log is worth telling: not that a server which is stopped gives up an answer."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def listen(host: str, port: int, *, loopback_only: bool) -> socket.socket:
    """Take the port; raises InputError when it cannot be had, or is not a loopback address though it must be."""
    fix = "choose another with --port or --host"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if loopback_only and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            problem, fix = "others can reach this address, and there is no API key", "give --api-key-file"
            raise InputError(f"--host {host}", problem, fix=fix)
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it. Else an answer's second packet waits 40 ms for the first to be acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0]
        raise InputError(f"{host}:{port}", f"cannot listen there: {reason}", fix=fix) from None
