"""serve: finished runs behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilocal.cli.lists import FOLDER, Word

if TYPE_CHECKING:
    from pilocal.errors import PilocalError
    from pilocal.server import RequestLogEntry


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option(
    "--context", default=2048, show_default=True, type=click.IntRange(1), help="Longest prompt and answer, in tokens."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of llama.cpp; by default its own choice.")
@click.option(
    "--parallel", default=16, show_default=True, type=click.IntRange(1, 128), help="Requests that are answered at once."
)
@click.option("--exact", is_flag=True, help="Answer requests one at a time, each as in a process of its own.")
@click.option(
    "--cache",
    default=1024,
    show_default=True,
    type=click.IntRange(0),
    help="MiB of keys and values that are kept; what was used least recently leaves first.",
)
@click.option(
    "--queue", default=16, show_default=True, type=click.IntRange(0), help="Requests that may wait; beyond that, 429."
)
@click.option(
    "--grace",
    default=30,
    show_default=True,
    type=click.IntRange(1),
    help="Seconds that a server which is stopped gives the answers that go on.",
)
@click.option(
    "--fallback-share",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of requests that the base answers, with the full prompt.",
)
@click.option(
    "--fallback-on",
    type=Word(["low-confidence"]),
    help="Let the base answer, with the full prompt, where the adapter is not sure of its answer.",
)
@click.option(
    "--shadow-share",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of answers that are compared with the base's under the full prompt; /metrics counts agreement.",
)
@click.option(
    "--api-key-file",
    type=FOLDER,
    help="File with the key that clients must send; required if other machines can reach the server.",
)
@click.option(
    "--allow-origin",
    "allow_origins",
    metavar="ORIGIN",
    multiple=True,
    help="Origin whose web pages may use the server, such as http://localhost:3000; repeatable. * lets every page.",
)
@click.option("--log", type=FOLDER, help="Append one JSON object per request to this file; - is stdout.")
@click.option("--log-contents", is_flag=True, help="With --log: also what was asked and answered.")
def serve(runs: tuple[Path, ...], log: Path | None, **options: Any) -> None:
    """Serve finished runs with llama.cpp, behind an OpenAI-compatible API; clients send the bare query.

    A request's model is a task's name, or base. Several runs share one base in memory. If a request still carries its
    task's template, the template is removed; if it carries a changed one, the base answers it as it stands. With the
    header X-Pilocal-Fallback: full-prompt, the base answers with the full prompt. There is a page at /, and /metrics
    for Prometheus.
    """
    from pilocal.server import RequestLog, ServeOptions
    from pilocal.server import serve as start

    if options["log_contents"] and log is None:
        raise click.UsageError("--log-contents needs --log")

    def say(text: object) -> None:
        with suppress(OSError):  # nobody reads it any more, or its disk is full: requests are answered all the same
            click.echo(text, err=True)

    def show(entry: RequestLogEntry) -> None:
        say(entry.line())

    def ready(names: Sequence[str], port: int) -> None:
        page = f"http://{options['host']}:{port}/"
        say(f"serving {', '.join(names)} at {page}v1; the page is at {page}")

    def warn(text: object) -> None:
        say(f"warning: {text}")

    def unlogged(error: PilocalError) -> None:
        warn(f"{error}; requests are answered, and not logged until then")

    if "*" in options["allow_origins"]:
        warn("--allow-origin *: every web page that somebody opens here can use this server")
    if log == Path("-"):
        log = Path("/dev/stdout")
    with RequestLog(log, unlogged) if log else nullcontext() as file:
        start(runs, ServeOptions(**options), log=file.write if file else show, ready=ready, warn=warn)
