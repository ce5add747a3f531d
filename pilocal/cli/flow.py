"""run, and the single steps of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilocal.cli.lists import FOLDER, Word
from pilocal.errors import RunError
from pilocal.training.backend import TORCH, WEIGHTS, Backend

if TYPE_CHECKING:
    from pilocal.flow.listeners import StepResult
    from pilocal.flow.start import Start

TaskCommand = Callable[..., None]


def task_options(command: TaskCommand, run: str = "Run folder. By default TASK/run.") -> TaskCommand:
    """Add the options of every command on a task; `run` is the help text of --run."""
    decorators = (
        click.argument("task", type=FOLDER),
        click.option("--schedule", type=FOLDER, help="Schedule file. By default the task's, else linear with 5 shots."),
        click.option("--run", "run_folder", type=FOLDER, help=run),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


AT_LEAST_HELP = "Exit status 1 if what is served scores less than this on the test set, from 0 to 1."

FROM_HELP = (
    "Go on from the adapter of this run, whose template was another: train on what touches the changed entries, and "
    "replay the rest. By default the new run is TASK/NAME-edited."
)

BACKEND_OPTIONS = ("backend", "device", "weights", "initial_adapter")

WEIGHTS_HELP = (
    "For torch: keep a 4-bit base as floats, packed (same numbers, less memory, slower), or rounded again to "
    "bitsandbytes' nf4. By default packed if floats do not fit the GPU, else as floats."
)


def backend_options(command: TaskCommand) -> TaskCommand:
    """Add the options that choose the backend of a training."""
    decorators = (
        click.option(
            "--backend",
            type=Word(["mlx", "torch"]),
            help="What trains. By default mlx, or what trained this run before.",
        ),
        click.option(
            "--device", type=Word(["cpu", "cuda", "mps"]), help="For torch. By default the fastest available."
        ),
        click.option("--weights", type=Word(WEIGHTS), help=WEIGHTS_HELP),
        click.option("--initial-adapter", type=FOLDER, help="For torch: start from this adapter, in mlx-lm's format."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_backend(options: dict[str, Any]) -> Backend | None:
    """Take the backend out of a command's options; None if none is chosen.

    Raises UsageError for options for PyTorch without --backend torch.
    """
    chosen = {name: options.pop(name, None) for name in BACKEND_OPTIONS}
    name = chosen.pop("backend")
    for option, value in chosen.items():
        if value is not None and name != TORCH:
            flag = f"--{option.replace('_', '-')}"
            raise click.UsageError(f"{flag} belongs to --backend torch", click.get_current_context(silent=True))
    return Backend(name=name, **chosen) if name else None


def start_options(command: TaskCommand) -> TaskCommand:
    """Add the options of a run that goes on from another."""
    decorators = (
        click.option("--from", "start", type=FOLDER, help=FROM_HELP),
        click.option(
            "--steps", type=int, help="With --from: optimizer steps. By default a quarter of those in the task."
        ),
        click.option("--replay", type=float, help="With --from: share of rows that touch no change. By default 0.9."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def take_start(options: dict[str, Any]) -> Start | None:
    """Take the run to go on from out of a command's options; None if there is none.

    Raises UsageError for its options without it, InputError for impossible ones.
    """
    run, chosen = options.pop("start", None), {name: options.pop(name, None) for name in ("steps", "replay")}
    given = {name: value for name, value in chosen.items() if value is not None}
    if run is None:
        for name in given:
            raise click.UsageError(f"--{name} belongs to --from", click.get_current_context(silent=True))
        return None
    from pilocal.flow.start import Start

    return Start(run, **given)


def run_until(
    last: str,
    task: Path,
    schedule: Path | None,
    run_folder: Path | None,
    as_json: bool,
    report_to: str | None = None,
    backend: Backend | None = None,
    start: Start | None = None,
) -> Path | None:
    """Run the flow up to a step and print the result; return the run, with --from the one that has the adapter.

    A process that was launched to help another one prints nothing and returns None.
    """
    from pilocal.cli.display import listening
    from pilocal.cli.tables import metrics_table, proof_lines, show
    from pilocal.flow.opening import default_run
    from pilocal.flow.run import Run, run_task

    results: list[StepResult] = []
    asked = run_folder or default_run(task, start)
    with listening(results.append, report_to, asked) as listeners:
        folder = run_task(task, schedule, asked, until=last, backend=backend, start=start, listeners=listeners)
        if folder is None:
            return None
    if start and folder != asked:
        if as_json:
            click.echo(json.dumps({"run": str(folder), "steps": _steps(results), "metrics": None}, indent=2))
        return folder
    if all(result.skipped for result in results):
        click.echo(f"{folder} is up to date", err=True)
    metrics = Run(folder).metrics if last == "evaluate" else None
    if as_json:
        click.echo(json.dumps({"run": str(folder), "steps": _steps(results), "metrics": metrics}, indent=2))
    elif metrics is not None:
        show(*proof_lines(metrics), metrics_table(metrics))
        click.echo(f"serve it with: pilocal serve {folder}")
        if (page := folder / "report.html").is_file():
            click.echo(f"all of it on one page: {page}", err=True)
    return folder


def _steps(results: Sequence[StepResult]) -> dict[str, dict[str, Any]]:
    """Return what --json says about the steps."""
    return {result.name: {"skipped": result.skipped, "seconds": result.seconds} for result in results}


def _check_score(folder: Path, bar: float) -> None:
    """Raise RunError where what is served scores less than the bar; all is written and printed by then."""
    from pilocal.evaluate.arms import SHIPPED
    from pilocal.flow.run import Run

    score = Run(folder).metrics["arms"][SHIPPED.name]["score"]
    if score < bar:
        what = f"what is served scores less than --at-least {bar:g}"
        fix = f"see the answers in {folder / 'report.html'}"
        raise RunError(folder / "metrics.json", what, got=round(score, 4), fix=fix)


def _step(name: str, text: str, *, trains: bool = False) -> click.Command:
    """Make the command that runs the flow up to one step."""

    def callback(**options: Any) -> None:
        last, backend, start = name if name != "run" else "evaluate", take_backend(options), take_start(options)
        bar = options.pop("at_least", None)
        run = run_until(last, backend=backend, start=start, **options)
        if bar is not None and run is not None:
            _check_score(run, bar)

    command = task_options(callback)
    if name in ("run", "evaluate"):
        command = click.option("--at-least", type=click.FloatRange(0, 1), help=AT_LEAST_HELP)(command)
    if name == "run":
        command = start_options(command)
    if trains:
        trackers = Word(["tensorboard", "wandb"])
        command = click.option("--report-to", type=trackers, help="Also send the training curves there.")(command)
        command = backend_options(command)
    return click.command(name, help=text)(command)


run = _step(
    "run", "Run the whole flow, from the task to a served file and its scores. Run it again to resume.", trains=True
)
index = _step("index", "Index the training examples and choose their shots.")
train = _step("train", "Train the adapter through all stages.", trains=True)
evaluate = _step("evaluate", "Score and time every arm on the test set.")


@click.command()
@task_options
@click.option(
    "--format",
    "form",
    type=Word(["openai", "bedrock", "together", "fireworks", "mlx"]),
    help="Also write them for the hosted fine-tuning of OpenAI, Amazon Bedrock (Nova), Together or Fireworks, or for "
    "stock mlx_lm.lora, with the order of training.",
)
def stages(task: Path, schedule: Path | None, run_folder: Path | None, as_json: bool, form: str | None) -> None:
    """Render one data set per stage."""
    if form is None:
        run_until("stages", task, schedule, run_folder, as_json)
        return
    from pilocal.cli.display import listening
    from pilocal.cli.tables import order_table, show
    from pilocal.flow.formats.write import write_stages
    from pilocal.flow.opening import default_run

    folder = run_folder or default_run(task)
    results: list[StepResult] = []
    with listening(results.append) as listeners:
        order = write_stages(task, form, schedule=schedule, run=folder, listeners=listeners)
    if as_json:
        found = {"run": str(folder), "steps": _steps(results), "metrics": None, form: order.stages}
        click.echo(json.dumps(found, indent=2))
    else:
        show(order_table(order))
        click.echo("\n".join(order.how))
