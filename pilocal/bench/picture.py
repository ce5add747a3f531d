"""bench.json as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.chart import Line, line_chart
from pilocal.evaluate.arms import BY_BENCH


def draw_bench(result: Mapping[str, Any], path: Path) -> None:
    """Draw each arm's time to the first token over the number of clients, the median and up to the 90th percentile."""
    lines = []
    for name, arm in result["arms"].items():
        middle, most = ([row["ttft_ms"][part] for row in arm["clients"].values()] for part in ("median", "p90"))
        clients = [int(count) for count in arm["clients"]]
        lines.append(Line(name=BY_BENCH[name].title, x=clients, y=middle, low=middle, high=most))
    title = f"Time to the first token, median and 90th percentile of {result['requests']} requests"
    line_chart(path, lines, title=title, x="clients at once", y="milliseconds", log_x=True, log_y=True)
