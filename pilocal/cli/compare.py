"""compare: every way of answering a task, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path)


def listed(name: str, kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return the callback of an option whose values stand between commas."""

    def split(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of {name}.", ctx, param) from None

    return split


NAMES, NUMBERS = listed("names", str), listed("numbers", int)


@click.command()
@click.argument("task", type=FOLDER)
@click.option("--schedule", type=FOLDER, help="Schedule file with a law: stages, shots and shares of every arm.")
@click.option("--run", "folder", type=FOLDER, help="The comparison's folder; TASK/compare when left out.")
@click.option(
    "--arms", callback=NAMES, default="", help="Arms between commas; all that need nothing else when left out."
)
@click.option("--seeds", callback=NUMBERS, default="0,1,2", help="Seeds of the training, between commas; 0,1,2.")
@click.option(
    "--curve", callback=NUMBERS, default="", help="Also the learning curve, over so many examples: 25,50,100."
)
@click.option("--price", type=click.FloatRange(min=0), help="Money for a million prompt tokens, for the break-even.")
@click.option(
    "--training-price", type=click.FloatRange(min=0), help="For a million trained tokens; --price if left out."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
def compare(
    task: Path,
    schedule: Path | None,
    folder: Path | None,
    arms: tuple[str, ...],
    seeds: tuple[int, ...],
    curve: tuple[int, ...],
    price: float | None,
    training_price: float | None,
    as_json: bool,
) -> None:
    """Run every arm with every seed and write one table; run it again to resume.

    An arm is a prompt for the base (query-only, full-prompt, full-prompt-cached), a template that is compressed at
    inference (rules@0.3, COMPRESSOR@TAU), or a schedule (linear, exponential, inverse-exponential, template-only,
    shots-only, drop, direct, adaptive). All schedules get the same number of optimizer steps.
    """
    from rich.console import Console

    from pilocal.cli.display import comparison_tables, progress_bars, warning_on
    from pilocal.compare.arms import parse_arms
    from pilocal.compare.comparison import LINEAR, Design, open_comparison
    from pilocal.compare.picture import draw_curve
    from pilocal.compare.results import Result
    from pilocal.compare.table import CURVE, Prices, make_table, markdown
    from pilocal.errors import InputError
    from pilocal.packages import require_packages
    from pilocal.run.files import replacing, write_json
    from pilocal.task.schedule import load_law

    if training_price is not None and price is None:
        raise InputError("--training-price", "of no use without --price", fix="give both")
    if curve:
        require_packages("--curve", "matplotlib")
    prices = (
        None if price is None else Prices(prompt=price, training=price if training_price is None else training_price)
    )
    law = load_law(schedule) if schedule else LINEAR
    design = Design(arms=parse_arms(arms), seeds=seeds, law=law, curve=curve)
    folder = folder or (task.parent if task.is_file() else task) / "compare"
    with (
        progress_bars() as (progress, console),
        open_comparison(task, folder, design, progress, warning_on(console)) as comparison,
    ):

        def report(result: Result) -> None:
            score = comparison.metric.total(result.marks_NS)
            console.print(f"{result.name}: {score:.3f}", highlight=False)

        table = make_table(comparison, comparison.results(report), prices)
        write_json(folder / "compare.json", table)
        with replacing(folder / "compare.md") as file:
            file.write(markdown(table))
        if table["curve"]:
            draw_curve(table, folder / CURVE)
    if as_json:
        click.echo(json.dumps(table, indent=2))
    else:
        for shown in comparison_tables(table):
            Console().print(shown)
        click.echo(f"{folder / 'compare.md'} and compare.json hold the same")
