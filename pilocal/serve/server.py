"""`pilocal serve`: where the app listens, and until when."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

from pilocal.errors import InputError
from pilocal.run.shipped import Shipped
from pilocal.serve.app import Options, make_app
from pilocal.serve.request_log import Entry


def serve(
    tasks: Sequence[Shipped],
    options: Options,
    *,
    host: str,
    port: int,
    log: Callable[[Entry], None],
    ready: Callable[[int], None],
) -> None:
    """Answer OpenAI-compatible requests under http://host:port/v1 until the process is interrupted.

    The port is taken before anything is loaded, and requests that come meanwhile wait; `ready` is told it once all is
    loaded (a port of 0 is any free one), `log` of every finished request. Raises InputError when the port is not to be
    had, or others could reach the server without a key; what `make_app` raises; and KeyboardInterrupt once an
    interrupted server has shut down.
    """
    import uvicorn

    with listen(host, port, options.key) as listener:
        app = make_app(tasks, options, log)
        ready(listener.getsockname()[1])
        uvicorn.Server(uvicorn.Config(app, access_log=False)).run(sockets=[listener])


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """Take the port; raises InputError."""
    fix = "choose another with --port or --host"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if key is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            what, fix = "others can reach this address, and there is no API key", "give --api-key-file"
            raise InputError(f"--host {host}", what, fix=fix)
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it. Else an answer's second packet waits 40 ms for the first to be acknowledged.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0]
        raise InputError(f"{host}:{port}", f"cannot listen there: {reason}", fix=fix) from None
