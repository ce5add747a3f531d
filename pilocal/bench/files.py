"""A run's bench.json and bench.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilocal.bench.latency import Weights, measure
from pilocal.bench.picture import draw_bench
from pilocal.bench.prompts import read_prompts
from pilocal.errors import InputError
from pilocal.packages import require_packages
from pilocal.progress import Progress, silent
from pilocal.run_folder.files import write_json
from pilocal.run_folder.shipped import read_shipped


def bench(
    run: str | Path,
    *,
    clients: Sequence[int] = (1, 4, 16),
    requests: int = 32,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time a run's exported files in llama.cpp, write RUN/bench.json and RUN/bench.svg, and return the former.

    `clients` are the numbers of clients that ask at once, `requests` the requests that each number of them shares;
    llama.cpp takes a thread for each core when `threads` is None. Raises InputError for fewer requests than clients or
    a missing package, RunError when the run has exported nothing or its rows are damaged, and what `measure` raises.
    """
    require_packages("bench.svg", "matplotlib")
    if not clients or min(clients) < 1 or max(clients) > requests:
        what = f"numbers from 1 to {requests}, the number of requests, are needed"
        raise InputError("clients", what, got=list(clients), fix="ask for fewer clients or more requests")
    run = Path(run)
    shipped = read_shipped(run)
    weights = Weights(shipped.base_path, shipped.served_path, shipped.adapter_path)
    prompts = read_prompts(run, shipped, requests)
    result = measure(weights, prompts, sorted(set(clients)), threads=threads, progress=progress)
    write_json(run / "bench.json", result)
    draw_bench(result, run / "bench.svg")
    return result
