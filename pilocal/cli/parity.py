"""parity: the same steps on MLX and on PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pilocal.cli.lists import FOLDER, Word
from pilocal.task import PRECISIONS


@click.command()
@click.argument("run", type=FOLDER, required=False)
@click.option(
    "--reference",
    type=FOLDER,
    help="Replay what --record wrote instead of a run; MLX need not be installed.",
)
@click.option("--record", type=FOLDER, help="Keep MLX's replay in this folder, for --reference.")
@click.option(
    "--steps", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="Optimizer steps of the replay."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Largest relative difference of a loss, a gradient norm, a gradient or a logit; 1e-4 by default. With "
    "bfloat16: of the losses in the mean of all steps; 0.01 by default.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    type=Word(["cpu", "cuda", "mps"]),
    help="What PyTorch computes on.",
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    type=Word(PRECISIONS),
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

    At each step: both losses and gradient norms. At each stage's first step: the gradient of every adapter weight. At
    the end: the adapters' distance. Also the logits of MLX, PyTorch and llama.cpp, the tokenizers' ids, and the adapter
    in PEFT's format and back. RUN/parity.json and RUN/parity.svg hold the same. Exit status 1 beyond the tolerance.
    """
    if (run is None) == (reference is None) or (reference and record):
        raise click.UsageError("give a RUN, with or without --record, or a --reference")
    from pilocal.cli.display import progress_bars, warning_on
    from pilocal.errors import ParityError
    from pilocal.flow.listeners import Listeners
    from pilocal.parity import Settings, replay_reference
    from pilocal.parity import parity as replay_run

    settings = Settings(steps=steps, tolerance=tolerance, device=device, precision=precision)
    with progress_bars() as (progress, console):
        listeners = Listeners(progress=progress, warn=warning_on(console))
        if run is not None:
            result = replay_run(run, settings, record=record, listeners=listeners)
        else:
            assert reference is not None
            result = replay_reference(reference, settings, listeners=listeners)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        from pilocal.cli.tables import parity_lines, parity_table, show

        show(parity_table(result))
        for line in parity_lines(result):
            click.echo(line)
        if run:
            click.echo(f"{run / 'parity.json'} and parity.svg hold every step")
    if result["exceeded"]:
        others = len(result["exceeded"]) - 1
        more = f" (and {others} more)" if others else ""
        where, fix = str(run or reference), "see parity.json" if run else "see --json"
        raise ParityError(where, f"{result['exceeded'][0]}, more than {settings.allowed:g}{more}", fix=fix)
