"""compress: the step of a run, or a preview of a compressor on the template."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pilocal.cli.flow import run_until, task_options
from pilocal.cli.lists import Word
from pilocal.task import METHODS


@click.command()
@task_options
@click.option("--compressor", type=Word(METHODS), help="Preview this compressor instead of the task's.")
@click.option(
    "--tau",
    "taus",
    type=click.FloatRange(0, 1),
    multiple=True,
    help="Preview this share of tokens instead of the schedule's. May be repeated.",
)
def compress(
    task: Path,
    schedule: Path | None,
    run_folder: Path | None,
    as_json: bool,
    compressor: str | None,
    taus: tuple[float, ...],
) -> None:
    """Shorten the template to every tau of the schedule.

    With --compressor or --tau, it previews a compressor on your template: the texts are printed and nothing is kept.
    """
    if compressor is None and not taus:
        run_until("compress", task, schedule, run_folder, as_json)
        return
    from pilocal.compress import TOLERANCE
    from pilocal.errors import InputError
    from pilocal.flow.preview import preview_templates

    if run_folder is not None:
        fix = "leave it out, or set the method in task.toml"
        raise InputError("--run", "a preview with --compressor or --tau keeps nothing", fix=fix)
    began = time.monotonic()
    results = preview_templates(task, schedule=schedule, method=compressor, taus=taus)
    seconds = time.monotonic() - began
    if off := ", ".join(f"{result.ratio:.3f} for tau {result.tau:.4g}" for result in results if result.is_off):
        click.echo(f"warning: {results[0].compressor} misses tau by more than {TOLERANCE:g}: {off}", err=True)
    if as_json:
        shown: list[dict[str, Any]] = [asdict(result) for result in results]
        click.echo(json.dumps({"seconds": seconds, "templates": shown}, indent=2, ensure_ascii=False))
        return
    for result in results:
        what = f"{result.compressor} at tau {result.tau:.4g}: {result.tokens} tokens, a share of {result.ratio:.3f}"
        click.echo(what, err=True)
        click.echo(result.text)
    click.echo(f"{seconds:.1f} s", err=True)
