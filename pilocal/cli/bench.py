"""bench: what a request costs with the prompt and without."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER, NUMBERS


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--clients", callback=NUMBERS, default="1,4,16", show_default=True, help="Numbers of clients that ask at once."
)
@click.option(
    "--requests", default=32, show_default=True, type=click.IntRange(2), help="Requests for each number of clients."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of llama.cpp; by default one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def bench(run: Path, clients: tuple[int, ...], requests: int, threads: int | None, as_json: bool) -> None:
    """Time a run's exported files in llama.cpp: the full prompt, the same with a warm prefix cache, the bare query.

    Measures time to the first token, time to the whole answer, requests per second, and the memory of keys and values,
    for several numbers of clients at once. RUN/bench.json and RUN/bench.svg hold the same.
    """
    from pilocal.bench import bench as measure
    from pilocal.cli.display import progress_bars
    from pilocal.cli.tables import bench_table, show

    if not clients or min(clients) < 1 or max(clients) > requests:
        raise click.UsageError(f"--clients are numbers from 1 to --requests, which is {requests}")
    with progress_bars() as (progress, _):
        result = measure(run, clients=clients, requests=requests, threads=threads, progress=progress)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show(bench_table(result))
        click.echo(f"{run / 'bench.json'} and bench.svg hold the same")
