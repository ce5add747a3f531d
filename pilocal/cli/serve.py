"""serve: a finished run behind an OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="Port to listen on.")
@click.option(
    "--context", default=2048, show_default=True, type=click.IntRange(1), help="Longest prompt and answer, in tokens."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of llama.cpp; its own choice when left out.")
def serve(run: Path, host: str, port: int, context: int, threads: int | None) -> None:
    """Serve a run's GGUF with llama.cpp, OpenAI-compatible; send it the bare query."""
    from pilocal.serve.server import serve as start
    from pilocal.shipped import read_shipped

    shipped = read_shipped(run)
    gguf, alias = shipped.folder / (shipped.fused or shipped.base), shipped.name
    click.echo(f"serving {gguf} as {alias} at http://{host}:{port}/v1", err=True)
    start(gguf, alias=alias, host=host, port=port, context=context, threads=threads)
