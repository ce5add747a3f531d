"""bench: what a request costs with the prompt and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pilocal.cli.compare import NUMBERS


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--clients", callback=NUMBERS, default="1,4,16", show_default=True, help="How many ask at once.")
@click.option("--requests", default=32, show_default=True, type=click.IntRange(2), help="Requests for each of them.")
@click.option("--threads", type=click.IntRange(1), help="Threads of llama.cpp; one for each core when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def bench(run: Path, clients: tuple[int, ...], requests: int, threads: int | None, as_json: bool) -> None:
    """Time a run's exported files in llama.cpp: the full prompt, the same with a warm prefix cache, the bare query.

    For some numbers of clients at once: time to the first token, to the whole answer, requests a second, and the memory
    that keys and values take. RUN/bench.json and RUN/bench.svg hold the same.
    """
    from rich.console import Console

    from pilocal.bench import bench as measure
    from pilocal.cli.display import progress_bars
    from pilocal.packages import require_packages

    if not clients or min(clients) < 1 or max(clients) > requests:
        raise click.UsageError(f"--clients are numbers from 1 to --requests, which is {requests}")
    require_packages("bench.svg", "matplotlib")
    with progress_bars() as (progress, _):
        result = measure(run, clients=clients, requests=requests, threads=threads, progress=progress)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        Console().print(bench_table(result))
        click.echo(f"{run / 'bench.json'} and bench.svg hold the same")


def bench_table(result: dict[str, Any]) -> Any:
    """Return the arms at each number of clients."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from pilocal.bench.latency import TITLES

    arms = result["arms"]
    tokens = ", ".join(f"{TITLES[name]} {arm['prompt_tokens']:,.1f}" for name, arm in arms.items())
    caption = (
        f"{result['requests']} requests, {result['threads']} threads; times in ms, median / 90th percentile; "
        f"x: the first token's time over the bare query's. Prompt tokens: {tokens}."
    )
    table = Table(title="Latency in llama.cpp", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("arm", "clients", "first token", "x", "answer", "requests/s", "KV MiB"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for count in arms["bare_query"]["clients"]:
        for name, arm in arms.items():
            row = arm["clients"][count]
            first, whole = (f"{row[key]['median']:,.1f} / {row[key]['p90']:,.1f}" for key in ("ttft_ms", "latency_ms"))
            table.add_row(
                TITLES[name],
                count,
                first,
                f"{row['ttft_ratio']:.1f}",
                whole,
                f"{row['requests_per_second']:.2f}",
                f"{row['kv_bytes'] / 2**20:,.2f}",
            )
    return table
