"""RUN/report.html: one page that needs nothing else, from whatever the run has left so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pilocal.errors import InputError, RunError
from pilocal.report.differences import differences
from pilocal.report.markup import Html, join, tag
from pilocal.report.origin import again, data, origin
from pilocal.report.page import LARGEST, whole_page
from pilocal.report.record import ARTEFACTS, BENCH, COMPARISON, Record, trusting
from pilocal.report.scores import arms, comparison, savings, scores, summary
from pilocal.report.shipping import clients, gate, retention, strength
from pilocal.report.template import entries
from pilocal.report.training import training
from pilocal.run_folder.files import replacing


def write_report(folder: Path, *, price: float | None = None, comparison: Path | None = None) -> Path:
    """Write a run's report.html and return it; `price` is money per million prompt tokens.

    `comparison` is the folder of a comparison, by default the one beside the task. Raises InputError for a price that
    is none or a comparison that is not there, RunError for a damaged file or a full disk.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise InputError("price", "a price is a number from 0", got=price, fix="give money per million prompt tokens")
    record = Record(folder, comparison)
    page = make_page(record, price)
    path = record.run.report
    if (size := len(page.encode())) > LARGEST:
        fix = "delete the pictures and make it again"
        raise RunError(path, f"the page would have more than {LARGEST:,} bytes", got=size, fix=fix)
    with replacing(path) as file:
        file.write(page)
    return path


def make_page(record: Record, price: float | None = None) -> str:
    """Return the page; the same files make the same page. Raises RunError for a damaged file."""
    made = []
    with trusting(record.run.file):
        for path, part in _parts(record, price):
            with trusting(path):
                made.append(part(record))
        with trusting(record.run.metrics):
            said = summary(record)
        model = record.state.get("model", record.comparison.get("model"))
        about = f"{model}, internalized by pilocal" if model else "A report by pilocal"
        header = tag("header", tag("h1", record.name), tag("p", about, kind="soft"), tag("p", said))
        return whole_page(f"{record.name}: report", join(header, tag("main", join(*made)), _footer()))


def _parts(record: Record, price: float | None) -> list[tuple[Path, Callable[[Record], Html]]]:
    """Return what makes the sections of the page, each with the file that it reads most of."""
    run, compared = record.run, record.comparison_folder / COMPARISON
    if record.is_comparison:
        ways = ((compared, scores), (compared, comparison), (compared, strength))
        return [*ways, (run.file, origin), (run.file, partial(again, price=price))]
    return [
        (run.metrics, scores),
        (run.metrics, partial(savings, price=price)),
        (run.metrics, arms),
        (compared, comparison),
        (run.file, training),
        (run.metrics, entries),
        (run.export / ARTEFACTS, gate),
        (run.metrics, retention),
        (compared, strength),
        (run.path / BENCH, clients),
        (run.answers, differences),
        (run.file, data),
        (run.file, origin),
        (run.file, partial(again, price=price)),
    ]


def _footer() -> Html:
    said = "Greedy decoding throughout. An interval holds 95% of the scores of test sets drawn again from this one."
    return tag("footer", tag("p", said))
