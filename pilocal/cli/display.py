"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pilocal.compare.table import cells, curve_cells, title
from pilocal.evaluate.titles import TITLES
from pilocal.flow.formats import Order
from pilocal.flow.listeners import Listeners, StepResult, unheard
from pilocal.flow.plan import Plan
from pilocal.progress import Progress


@contextmanager
def progress_bars() -> Iterator[tuple[Progress, Console]]:
    """Show a bar for every kind of work, on stderr; the console prints lines above the bars."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, note=note)
            bars.update(tasks[what], completed=done, total=total, note=note)
            if done >= total:
                bars.remove_task(tasks.pop(what))

        yield report, bars.console


@contextmanager
def listening(heard: Callable[[StepResult], None] = unheard, report_to: str | None = None) -> Iterator[Listeners]:
    """Yield listeners that show a run on stderr: bars, steps and warnings; `heard` hears of each step, too."""
    with progress_bars() as (progress, console):

        def step(result: StepResult) -> None:
            heard(result)
            console.print(step_line(result))

        yield Listeners(progress=progress, warn=warning_on(console), step=step, report_to=report_to)


def warning_on(console: Console) -> Callable[[str], None]:
    """Return a function that prints a warning as one line, and the same one only once."""
    said = set[str]()

    def warn(text: str) -> None:
        if text not in said:
            said.add(text)
            console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    return warn


def step_line(result: StepResult) -> str:
    """Return the line that tells what became of a step."""
    return (
        f"{result.name}: "
        + ("nothing to do" if result.skipped else f"done in {result.seconds:.1f} s")
        + (f"; {result.note}" if result.note else "")
    )


def plan_table(plan: Plan) -> Table:
    """Return the table of what each stage costs in tokens, memory and time."""
    caption = (
        "template, prompt (mean) and longest row in tokens; kept: the realised tau; GiB: peak of memory. "
        f"The model's context is {plan.context:,} tokens."
    )
    table = Table(title="Plan", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("stage", "tau", "shots", "steps", "template", "kept", "prompt", "longest", "GiB", "time")
    for name in names:
        table.add_column(name, justify="right")
    for number, (stage, need) in enumerate(zip(plan.stages, plan.needs, strict=True)):
        table.add_row(
            str(number),
            f"{stage.tau:.2f}",
            str(stage.shots),
            str(stage.steps),
            f"{stage.template_tokens:,}",
            f"{stage.ratio:.2f}",
            f"{stage.prompt_tokens:,.1f}",
            f"{stage.longest_row:,}",
            "" if need is None else f"{need.peak / 2**30:.2f}",
            "" if need is None or need.seconds is None else str(timedelta(seconds=round(need.seconds))),
        )
    return table


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Return the arms side by side, with what they add up to below."""

    def show(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    caption = (
        f"PI score {show(metrics['pi_score'], '.3f')}   "
        f"prompt tokens -{100 * metrics['prompt_token_reduction']:.1f}%   "
        f"{metrics['speedup']:.1f}x faster than the full prompt, "
        f"{metrics['speedup_cached']:.1f}x than a warm prefix cache"
    )
    table = Table(title=f"{metrics['metric']} on {metrics['n']} test queries", caption=caption)
    for name in ("arm", "score", "95% interval", "prompt tokens", "first token, ms", "answer, ms"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, row in metrics["arms"].items():
        table.add_row(
            TITLES[arm],
            show(row.get("score"), ".3f"),
            "-".join(f"{bound:.3f}" for bound in row.get("interval", ())),
            show(row.get("prompt_tokens"), ".1f"),
            show(row.get("ttft_ms"), ".1f"),
            show(row.get("latency_ms"), ".1f"),
        )
    return table


def order_table(order: Order) -> Table:
    """Return the table of the stages in the order in which another trainer is to train them."""
    head = ("stage", "tau", "shots", "rows", "tokens", "epochs", "train")
    rows = [
        [
            str(line["stage"]),
            f"{line['tau']:.2f}",
            str(line["shots"]),
            f"{line['rows']:,}",
            f"{line['tokens']:,}",
            f"{line['epochs']:g}",
            line["train"],
        ]
        for line in order.stages
    ]
    return _table("Order of training", head, rows)


def comparison_tables(table: dict[str, Any]) -> list[Table]:
    """Return the table of the arms, and that of the learning curve where there is one."""
    shown = [_table(title(table), *cells(table))]
    if table["curve"]:
        shown.append(_table("score over the number of training examples", *curve_cells(table)))
    return shown


def _table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=name, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(head):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def artefacts_table(artefacts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return what was shipped, and how far it lies from the trained adapter."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("form")
    for name in ("MB", "KL, nats a token", "of no adapter's", "score"):
        table.add_column(name, justify="right")
    for form, entry in artefacts.items():
        size = f"{sum(entry['files'].values()) / 1e6:,.1f}"
        cells = ["", "", ""]
        if "kl" in entry:
            size = f"{entry['bytes'] / 1e6:,.1f}"
            share = entry["kl"] / entry["kl_without"] if entry["kl_without"] else float("inf")
            score = "" if "score" not in entry else f"{entry['score']:.3f}"
            cells = [f"{entry['kl']:.2g}", f"{share:.2g}" + ("" if entry["passes"] else " (refused)"), score]
        table.add_row(form, size, *cells)
    return table
