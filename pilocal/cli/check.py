"""check: what a user wants to know before a training, on one screen or on a page."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilocal.cli.flow import backend_options, take_backend, task_options
from pilocal.cli.lists import FOLDER, unified_memory
from pilocal.cli.prices import price_options, saving_table, take_prices
from pilocal.training.backend import torchrun_rank

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pilocal.flow.plan import Plan
    from pilocal.flow.saving import Prices

GAP_HELP = (
    "Measure what the prompt is worth to the base, and each entry of the template. By default where the base does it "
    "in a few minutes."
)

MACHINE_HELP = (
    "Tell whether a Mac with so much unified memory could train it, such as 32GB. Nothing is loaded: the base's "
    "config.json and tokenizer are enough."
)

MOST_WARNINGS = 4
"""Lines on the data."""


@click.command()
@partial(task_options, run="Keep templates and shots in this run folder. By default nothing is kept.")
@backend_options
@click.option("--probe/--no-probe", default=True, help="Take one real step, to predict memory and time.")
@click.option("--gap/--no-gap", default=None, help=GAP_HELP)
@click.option("--machine", metavar="SIZE", callback=unified_memory, help=MACHINE_HELP)
@price_options
@click.option("--html", type=FOLDER, help="Also write all of it to this file, a page with every stage's prompt.")
def check(
    task: Path,
    schedule: Path | None,
    run_folder: Path | None,
    as_json: bool,
    probe: bool,
    gap: bool | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Validate a task and tell what a run will save, need and take, and whether it can work. Nothing is trained.

    Nothing is kept, except with --run: the compressed templates and the chosen shots, for a later run.
    """
    if torchrun_rank():
        return  # the first process tells it

    from pilocal.cli.display import listening
    from pilocal.flow import plan
    from pilocal.flow.listeners import unseen

    prices, machine = take_prices(options), options.pop("machine")
    if html:
        from pilocal.flow.check_page.write import check_place

        check_place(html)
    with listening() as heard:
        on_screen = not as_json and sys.stdout.isatty()  # where warnings stand in the answer
        listeners = replace(heard, warn=unseen) if on_screen else heard
        found = plan.check(
            task,
            schedule=schedule,
            run=run_folder,
            probe=probe,
            gap=gap,
            backend=take_backend(options),
            listeners=listeners,
            machine=machine,
        )
    if html:
        click.echo(f"all of it on one page: {found.write_page(html, prices)}", err=True)
    if as_json:
        click.echo(json.dumps(_plan(found), indent=2))
    else:
        _show(found, prices, html)


def _plan(found: Plan) -> dict[str, Any]:
    stages = [
        asdict(stage)
        | ({"peak_memory": need.peak, "fits": need.peak <= found.memory, "seconds": need.seconds} if need else {})
        for stage, need in zip(found.stages, found.needs, strict=True)
    ]
    known = ("context", "machine", "memory", "advice", "hints", "weights", "warnings")
    result = {"stages": stages} | {name: getattr(found, name) for name in known}
    result["sample"] = dict(found.sample)
    result["saving"] = asdict(found.saving)
    result["gap"] = asdict(found.gap) if found.gap else None
    result["picture"] = str(found.picture) if found.picture else None
    return result


def _show(found: Plan, prices: Prices | None, page: Path | None) -> None:
    from pilocal.cli.tables import gap_table, plan_table, show
    from pilocal.flow.verdicts import further_hints

    census = [gap_table(found.gap, found.picture, page)] if found.gap else []
    show(_answers(found, prices, page), saving_table(found.saving, prices), plan_table(found), *census)
    if found.weights:
        click.echo(found.weights)
    for hint in further_hints(found):
        click.echo(f"hint: {hint}")
    if not page:
        click.echo("hint: --html FILE writes a page of this, with each stage's prompt")


def _answers(found: Plan, prices: Prices | None, page: Path | None) -> RenderableType:
    """Return each answer in a line or two, and below them what is odd about the data."""
    from rich.table import Table
    from rich.text import Text

    from pilocal.cli.tables import on_page
    from pilocal.flow.verdicts import verdicts

    grid = Table.grid(padding=(0, 2, 0, 0))
    for verdict in verdicts(found, prices):
        style = {True: "green", False: "red", None: "bold"}[verdict.good]
        grid.add_row(verdict.about, Text.assemble((verdict.answer, style), f": {verdict.why}"))
    shown = found.warnings[:MOST_WARNINGS]
    for warning in shown:
        grid.add_row("", Text(warning, overflow="fold"))
    if more := len(found.warnings) - len(shown):
        grid.add_row("", f"and {more} more, {on_page(page)}")
    return grid
