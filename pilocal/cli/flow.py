"""check, run, and the steps of a run one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pilocal.training.backend import TORCH, WEIGHTS, Backend

FOLDER = click.Path(path_type=Path)

TaskCommand = Callable[..., None]


def task_options(command: TaskCommand) -> TaskCommand:
    """Add what every command on a task takes."""
    decorators = (
        click.argument("task", type=FOLDER),
        click.option("--schedule", type=FOLDER, help="Schedule file; linear, 4 stages, 5 shots when left out."),
        click.option("--run", "run_folder", type=FOLDER, help="Run folder; TASK/run when left out."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def run_until(
    last: str,
    task: Path,
    schedule: Path | None,
    run_folder: Path | None,
    as_json: bool,
    report_to: str | None = None,
    form: str | None = None,
    backend: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    initial_adapter: Path | None = None,
) -> None:
    """Run the flow up to a step and print what it found; a process that was launched to help only helps."""
    from rich.console import Console

    from pilocal.cli.display import metrics_table, order_table, progress_bars, step_line, warning_on
    from pilocal.flow.context import Listeners
    from pilocal.flow.followers import follow_leader
    from pilocal.flow.formats.write import write_format
    from pilocal.flow.opening import open_task
    from pilocal.flow.runner import StepResult, run_steps, step_named

    chosen = _backend(backend, device, weights, initial_adapter)
    step = step_named(last)
    if follow_leader(task, step, chosen):
        return
    run_folder = run_folder or (task.parent if task.is_file() else task) / "run"
    results: list[StepResult] = []
    with (
        progress_bars() as (progress, console),
        open_task(
            task,
            schedule,
            run_folder,
            Listeners(progress=progress, warn=warning_on(console), report_to=report_to),
            chosen,
        ) as context,
    ):

        def report(result: StepResult) -> None:
            results.append(result)
            console.print(step_line(result))

        run_steps(context, step, report)
        order = write_format(context, form) if form else None
        if order is None and all(result.skipped for result in results):
            console.print(f"{run_folder} is up to date")
    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8")) if last == "evaluate" else None
    if as_json:
        steps = {result.name: {"skipped": result.skipped, "seconds": result.seconds} for result in results}
        found = {"run": str(run_folder), "steps": steps, "metrics": metrics}
        click.echo(json.dumps(found | ({form: order.stages} if order else {}), indent=2))
    elif order is not None:
        Console().print(order_table(order))
        click.echo("\n".join(order.how))
    elif metrics is not None:
        Console().print(metrics_table(metrics))
        click.echo(f"serve it with: pilocal serve {run_folder}")


HELD = (
    "For torch: a 4-bit base as floats, packed (the same numbers, less memory, slower), or rounded again to "
    "bitsandbytes' nf4. Packed only where floats do not fit a GPU, when left out."
)


def backend_options(command: TaskCommand) -> TaskCommand:
    """Add what chooses the backend of a training."""
    choice = click.Choice
    decorators = (
        click.option("--backend", type=choice(["mlx", "torch"]), help="What trains; mlx, or what trained this run."),
        click.option("--device", type=choice(["cpu", "cuda", "mps"]), help="For torch; the fastest that is there."),
        click.option("--weights", type=choice(WEIGHTS), help=HELD),
        click.option("--initial-adapter", type=FOLDER, help="For torch: start from this adapter of mlx-lm's format."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _backend(name: str | None, device: str | None, weights: str | None, initial_adapter: Path | None) -> Backend | None:
    """Return the backend that the options choose, or None; options without --backend torch are misuse."""
    for option, value in (("--device", device), ("--weights", weights), ("--initial-adapter", initial_adapter)):
        if value is not None and name != TORCH:
            raise click.UsageError(f"{option} belongs to --backend torch", click.get_current_context(silent=True))
    return Backend(name=name, device=device, weights=weights, initial_adapter=initial_adapter) if name else None


def _step(name: str, last: str, text: str, *, trains: bool = False, renders: bool = False) -> click.Command:
    """Make the command that runs the flow up to one step."""

    def callback(**options: Any) -> None:
        run_until(last, **options)

    command = task_options(callback)
    if trains:
        trackers = click.Choice(["tensorboard", "wandb"])
        command = click.option("--report-to", type=trackers, help="Show the training's curves there, too.")(command)
        command = backend_options(command)
    if renders:
        forms = click.Choice(["openai", "mlx"])
        what = "Write them for OpenAI's hosted fine-tuning or for stock mlx_lm.lora, too, with the order of training."
        command = click.option("--format", "form", type=forms, help=what)(command)
    return click.command(name, help=text)(command)


run = _step(
    "run",
    "evaluate",
    "The whole flow, from the task to a served file and its proof; run it again to resume.",
    trains=True,
)
index = _step("index", "index", "Index the training examples and choose their shots.")
stages = _step("stages", "stages", "Render one data set per stage.", renders=True)
train = _step("train", "train", "Train the adapter through all stages.", trains=True)
evaluate = _step("evaluate", "evaluate", "Score and time every arm on the test set.")


@click.command()
@task_options
@click.option("--probe/--no-probe", default=True, help="Take one real step, to predict memory and time from.")
def check(task: Path, schedule: Path | None, run_folder: Path | None, as_json: bool, probe: bool) -> None:
    """Validate a task and plan each stage's tokens, memory and time; trains nothing and leaves nothing behind.

    With --run, the compressed templates and the chosen shots are kept there for the run to come.
    """
    from rich.console import Console

    from pilocal.base.base import context_length
    from pilocal.cli.display import plan_table, progress_bars, warning_on
    from pilocal.flow.context import Listeners
    from pilocal.flow.opening import open_task
    from pilocal.flow.plan import plan_run

    with (
        progress_bars() as (progress, console),
        open_task(task, schedule, run_folder, Listeners(progress=progress, warn=warning_on(console))) as context,
    ):
        plan = plan_run(context, probe=probe)
        length = context_length(context.base)
    if as_json:
        stages = [
            asdict(stage) | ({"peak_memory": need.peak, "seconds": need.seconds} if need else {})
            for stage, need in zip(plan.stages, plan.needs, strict=True)
        ]
        result = {"context": length, "stages": stages, "memory": plan.memory, "advice": plan.advice}
        click.echo(json.dumps(result, indent=2))
    else:
        Console().print(plan_table(plan, length))
        if plan.advice:
            click.echo(f"this does not fit into {plan.memory / 2**30:.1f} GiB: {plan.advice}")
