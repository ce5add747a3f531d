"""What a run will cost, before it begins: tokens, memory and time of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.base.device import keeps_packed, machine_memory
from pilocal.base.load import load_base
from pilocal.flow.context import Context
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.rendering import StageBudget, render_stages


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost."""

    context: int
    """The longest sequence that the base takes, in tokens."""
    stages: list[StageBudget]
    needs: list[Any]
    """A training Need for each stage; None where nothing is trained."""
    memory: int
    """Bytes that the training may use here."""
    advice: str | None
    """What to change when it does not fit; None when it does."""


def check(
    task: str | Path,
    *,
    schedule: str | Path | None = None,
    run: str | Path | None = None,
    probe: bool = True,
    listeners: Listeners = QUIET,
) -> Plan:
    """Check a task and return what its run will cost, as `pilocal check` does; nothing is trained.

    Without `run` nothing is left behind; with it, templates and shots are kept there for the run to come. With `probe`
    one real step is taken to predict memory and time from. Raises InputError, ModelError, or Faults with all that is
    wrong.
    """
    folder = Path(run) if run else None
    with open_task(Path(task), Path(schedule) if schedule else None, folder, listeners) as context:
        return plan_run(context, probe=probe)


def plan_run(context: Context, *, probe: bool) -> Plan:
    """Return what every stage costs in tokens, memory and, with a probe (one real step), time.

    Raises InputError when a row is longer than the context, or answers to the test set could not be scored.
    """
    from pilocal.training.mlx import plan

    context.metric.check(context.task.test)
    lora, training = context.task.lora, context.task.training
    stages = render_stages(context)
    config, share = context.base.config, context.base.shares_prefix
    sizes = plan.read_sizes(config, lora)
    trained = context.schedule.trained
    works = [plan.survey(sizes, stages[number].train, training, number, share=share) for number in trained]
    base = plan.base_bytes(config, context.base.weight_files, as_float32=not keeps_packed())
    taken = None
    if probe:
        context.progress("probe", 0, 1)
        model = load_base(context.base, precision=training.precision)
        taken = plan.take_probe(model, works[0].heaviest, lora, training)
        context.progress("probe", 1, 1)
    steps, memory = context.schedule.steps(training.steps), machine_memory()
    needs = plan.predict(sizes, works, [steps[number] for number in trained], training, base, taken)
    return Plan(
        context.base.context,
        [stage.budget for stage in stages],
        [needs[trained.index(number)] if number in trained else None for number in range(len(steps))],
        memory,
        plan.advise(sizes, works, training, base, taken, memory, may_recompute=not lora.dropout),
    )
