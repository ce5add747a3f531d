"""compare: every way of answering a task, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pilocal.cli.flow import backend_options, take_backend
from pilocal.cli.lists import FOLDER, NAMES, NUMBERS, RATES
from pilocal.cli.prices import price_options, take_prices
from pilocal.evaluate.arms import BY_COMPARE
from pilocal.task.schedule import DECAYS

HELP = f"""Run every arm with every seed and write one table; run it again to resume.

    An arm is a prompt for the base ({", ".join(BY_COMPARE)}; full-prompt@5 with so many shots), a template that is
    compressed at inference (rules@0.3, COMPRESSOR@TAU), the answer of the nearest training question (nearest), or a
    schedule ({", ".join(DECAYS)}). All schedules get the same number of optimizer steps. A schedule's adapter is also
    asked at a strength from 0 to 2 (linear@0.5), with the old prompt put back (linear@prompt), and with its weights
    shuffled (linear@null).
    """


@click.command(help=HELP)
@click.argument("task", type=FOLDER)
@click.option("--schedule", type=FOLDER, help="Schedule file with a decay: stages, shots and shares of every arm.")
@click.option("--run", "folder", type=FOLDER, help="The comparison's folder; TASK/compare by default.")
@click.option("--arms", callback=NAMES, default="", help="Arms between commas; by default all that need nothing else.")
@click.option("--seeds", callback=NUMBERS, default="0,1,2", show_default=True, help="Training seeds between commas.")
@click.option(
    "--curve", callback=NUMBERS, default="", help="Adds a learning curve; numbers of examples, such as 25,50,100."
)
@click.option(
    "--residue",
    callback=RATES,
    default="",
    help="Adds the score of one adapter over the share of the template it is asked with, such as 0,0.05,0.1,0.2.",
)
@backend_options
@price_options
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
def compare(
    task: Path,
    schedule: Path | None,
    folder: Path | None,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    curve: tuple[int, ...],
    as_json: bool,
    **more: Any,
) -> None:
    """Run every arm with every seed and write one table."""
    from pilocal.cli.display import progress_bars, warning_on
    from pilocal.cli.tables import comparison_tables, show
    from pilocal.comparison import Design, parse_arms
    from pilocal.comparison import compare as run_comparison
    from pilocal.comparison.design import LINEAR
    from pilocal.comparison.files import default_folder
    from pilocal.flow.listeners import Listeners
    from pilocal.task import load_task
    from pilocal.task.schedule import load_decay

    prices, backend = take_prices(more), take_backend(more)
    schedule = schedule or load_task(task, data=False).files.get("schedule")
    decay = load_decay(schedule) if schedule else LINEAR
    design = Design(arms=parse_arms(arms), seeds=seeds, decay_schedule=decay, curve=curve, **more)
    folder = folder or default_folder(task)
    with progress_bars() as (progress, console):
        table = run_comparison(
            task,
            design,
            run=folder,
            prices=prices,
            backend=backend,
            listeners=Listeners(progress=progress, warn=warning_on(console)),
            report=lambda name, score: console.print(f"{name}: {score:.3f}", highlight=False),
        )
    if as_json:
        click.echo(json.dumps(table, indent=2))
    else:
        show(*comparison_tables(table))
        click.echo(f"{folder / 'compare.md'} and compare.json hold the same")
