"""report: one page that shows what a run has proved."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--price", type=click.FloatRange(min=0), help="Money per million prompt tokens, for what is saved.")
@click.option("--compare", "comparison", type=FOLDER, help="Folder of a comparison. By default TASK/compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the page's place and its size as JSON on stdout.")
def report(run: Path, price: float | None, comparison: Path | None, as_json: bool) -> None:
    """Write RUN/report.html: the scores, the training, the gate and the answers of a run on one page.

    The page holds its pictures and needs no other file, no script and no network; it can be printed. `pilocal run`
    writes it at its end. A run that is not finished gets a page of what is there, with the commands that make the rest.
    """
    from pilocal.flow.run import Run

    path = Run(run).report(price=price, comparison=comparison)
    if as_json:
        click.echo(json.dumps({"report": str(path), "bytes": path.stat().st_size}, indent=2))
    else:
        click.echo(path)
