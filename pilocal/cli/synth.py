"""synth: training data from the template."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER


@click.command()
@click.argument("task", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def synth(task: Path, as_json: bool) -> None:
    """Make training data that touches every entry of the template; run it again to resume.

    New queries are made of those that there are, by putting other entries of the template's lists into them. The base
    answers them with the whole template. TASK/synth gets train.jsonl, valid.jsonl and test.jsonl, each with the
    examples that there were before.
    """
    from pilocal.cli.display import listening
    from pilocal.cli.tables import show, synth_table
    from pilocal.synth import synthesize

    with listening() as listeners:
        report = synthesize(task, listeners=listeners)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    show(synth_table(report))
    if report["advice"]:
        click.echo(report["advice"])
