"""parity: the same steps on MLX and on PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pilocal.task import PRECISIONS


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Replay what --record wrote, in place of a run; MLX need not be installed.",
)
@click.option("--record", type=click.Path(path_type=Path), help="Keep MLX's replay in this folder, for --reference.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Optimizer steps of the replay.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Largest relative difference of a loss, a gradient norm, a gradient or a logit, 1e-4 when left out; with "
    "bfloat16 of the losses in the mean of all steps, 0.01 when left out.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    type=click.Choice(["cpu", "cuda", "mps"]),
    help="What PyTorch computes on.",
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=click.Choice(PRECISIONS),
    help="What PyTorch's base computes in; MLX's is float32.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def parity(
    run: Path | None,
    reference: Path | None,
    record: Path | None,
    steps: int,
    tolerance: float | None,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Replay a run's first steps, through all its stages, on MLX and on PyTorch, in float32 on the same rows.

    Step by step: both losses and gradient norms; at each stage's first step the gradient of every adapter weight; the
    adapters' distance at the end. Also the logits of MLX, PyTorch and llama.cpp, the tokenizers' ids, and the adapter
    in PEFT's format and back. RUN/parity.json and RUN/parity.svg hold the same. Exit status 1 beyond the tolerance.
    """
    from pilocal.packages import require_packages
    from pilocal.training.torch_backend.device import find_device

    if (run is None) == (reference is None) or (reference and record):
        raise click.UsageError("give a RUN, with or without --record, or a --reference")
    if run is not None:
        require_packages("parity.svg", "matplotlib")
    device = find_device(device)
    tolerance = tolerance or (1e-4 if precision == "float32" else 0.01)
    how: dict[str, Any] = {"tolerance": tolerance, "device": device, "precision": precision}

    from rich.console import Console

    from pilocal.cli.display import progress_bars, warning_on
    from pilocal.errors import ParityError
    from pilocal.flow.listeners import Listeners
    from pilocal.flow.opening import open_run
    from pilocal.parity.picture import draw_parity
    from pilocal.parity.report import check_reference, check_run
    from pilocal.run.files import write_json

    with progress_bars() as (progress, console):
        if run is None:
            assert reference is not None
            result = check_reference(reference, progress=progress, **how)
        else:
            with open_run(run, Listeners(progress=progress, warn=warning_on(console))) as context:
                result = check_run(context, steps=steps, record=record, **how)
                write_json(run / "parity.json", result)
                draw_parity(result, run / "parity.svg")
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        Console().print(parity_table(result))
        for line in beside(result):
            click.echo(line)
        if run:
            click.echo(f"{run / 'parity.json'} and parity.svg hold every step")
    if result["exceeded"]:
        others = len(result["exceeded"]) - 1
        more = f" (and {others} more)" if others else ""
        where, fix = str(run or reference), "see parity.json" if run else "see --json"
        raise ParityError(where, f"{result['exceeded'][0]}, more than {tolerance:g}{more}", fix=fix)


def parity_table(result: Mapping[str, Any]) -> Any:
    """Return the stages with their worst figures."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first, second = result["backends"]
    worst = max(result["stages"], key=lambda stage: stage["gradients"]["relative"])
    caption = (
        f"{first} and {second}: the loss, in nats a token, at the stage's last step. apart: the largest relative "
        f"difference in the stage; gradient: of the worst adapter weight at the stage's first step, of all "
        f"{worst['gradients']['tensor']} in stage {worst['stage']}. {second} on {result['device']}, "
        f"{result['precision']}; tolerance {result['tolerance']:g}. The adapters at the end: "
        f"{result['adapter_distance']:.1e} apart; the losses: {result['loss_curve']['mean_relative']:.1e} in the mean."
    )
    table = Table(title=f"{first} and {second}", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("stage", "tau", "shots", "steps", first, second, "loss apart", "norm apart", "gradient apart"):
        table.add_column(name, justify="right")
    for stage in result["stages"]:
        last = result["steps"][stage["first_step"] + stage["steps"] - 2]["loss"]
        table.add_row(
            str(stage["stage"]),
            f"{stage['tau']:.2f}",
            str(stage["shots"]),
            str(stage["steps"]),
            f"{last[first]:.3g}",
            f"{last[second]:.3g}",
            *(f"{stage[figure]['relative']:.1e}" for figure in ("loss", "gradient_norm", "gradients")),
        )
    return table


def beside(result: Mapping[str, Any]) -> list[str]:
    """Return the lines on what is compared beside the steps."""
    if "forward" not in result:
        return [f"recorded with {', '.join(f'{name} {made}' for name, made in result['made_by'].items())}"]
    forward, tokens, conversion, log = (result[key] for key in ("forward", "tokenizers", "conversion", "run_log"))
    lines = [
        f"logits, stage {entry['stage']}, {entry['program']} against mlx: at most {entry['max_absolute']:.1e} apart, "
        f"KL {entry['kl']:.1e} nats a token ({entry['tokens']} tokens, {forward['adapter']} adapter)"
        for entry in forward["figures"]
    ]
    if not forward["exported"]:
        lines.append("llama.cpp and its tokenizer: the run has no export yet")
    if tokens:
        lines.append(f"tokenizers: {tokens['differing']} of {tokens['rows']} chats have other ids in llama.cpp")
    lines.append(
        f"adapter to PEFT and back: {conversion['differing']} of {conversion['tensors']} weights differ; scale "
        f"{conversion['scale']['mlx']:g}, alpha / rank {conversion['scale']['peft']:g}"
    )
    if log:
        lines.append(f"the run's own log: {log['differing']} of {log['steps']} steps had rows of another length")
    return lines
