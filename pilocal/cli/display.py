"""What a person sees: progress on stderr, tables on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pilocal.evaluate.titles import TITLES
from pilocal.pipeline import StageBudget, StepResult
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


def warning_on(console: Console) -> Callable[[str], None]:
    """Return a function that prints a warning as one line."""
    return lambda text: console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)


def step_line(result: StepResult) -> str:
    """Return the line that tells what became of a step."""
    return f"{result.name}: " + ("nothing to do" if result.skipped else f"done in {result.seconds:.1f} s")


def budget_table(budgets: Sequence[StageBudget], context: int) -> Table:
    """Return the table of what each stage costs in tokens."""
    table = Table(title=f"Token budget (context of the model: {context:,})")
    for name in ("stage", "tau", "shots", "steps", "template", "realised", "mean prompt", "longest row"):
        table.add_column(name, justify="right")
    for number, stage in enumerate(budgets):
        table.add_row(
            str(number),
            f"{stage.tau:.2f}",
            str(stage.shots),
            str(stage.steps),
            f"{stage.template_tokens:,}",
            f"{stage.ratio:.2f}",
            f"{stage.prompt_tokens:,.1f}",
            f"{stage.longest_row:,}",
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
    for name in ("arm", "score", "prompt tokens", "first token, ms", "answer, ms"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, row in metrics["arms"].items():
        table.add_row(
            TITLES[arm],
            show(row.get("score"), ".3f"),
            show(row.get("prompt_tokens"), ".1f"),
            show(row.get("ttft_ms"), ".1f"),
            show(row.get("latency_ms"), ".1f"),
        )
    return table
