"""watch: a run as it goes on, on a page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--port", default=8090, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--json", "as_json", is_flag=True, help="Print how the run is now as JSON on stdout, and end.")
def watch(run: Path, port: int, as_json: bool) -> None:
    """Show a run as it goes on, on a page that only this machine can open.

    It reads the run folder alone and writes nothing there. The run may be one of another machine whose folder is
    mounted here. The page asks for what is new by itself and needs no network; /state has the same as JSON.
    """
    if as_json:
        from pilocal.watch.watcher import Watcher

        click.echo(json.dumps(asdict(Watcher(run).look()), indent=2, ensure_ascii=False))
        return
    from pilocal.watch.app import watch as start

    def ready(address: str) -> None:
        click.echo(f"watching {run} at {address}; Ctrl-C ends the page, not the run", err=True)

    try:
        start(run, port=port, ready=ready)
    except KeyboardInterrupt:
        click.echo("the page is closed; the run was not touched", err=True)
        click.get_current_context().exit(130)
