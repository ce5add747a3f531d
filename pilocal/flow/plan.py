"""What a run will cost, before it begins: tokens, memory and time of every stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pilocal.flow.context import Context
from pilocal.flow.gap import Gap, measure_gap, takes_long
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.rendering import StageBudget, render_stages
from pilocal.flow.runner import describe
from pilocal.flow.setups import training_setup
from pilocal.run_folder.files import write_json
from pilocal.task.text import path_of
from pilocal.training.backend import Backend
from pilocal.training.memory import Need
from pilocal.training.row_order import StagePlan


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will cost."""

    context: int
    """The longest sequence that the base takes, in tokens."""
    stages: list[StageBudget]
    needs: list[Need | None]
    """For each stage; None where nothing is trained."""
    memory: int
    """Bytes that the training may use here."""
    advice: str | None
    """What to change when it does not fit; None when it does."""
    hints: tuple[str, ...] = ()
    """What could be had for less, one line each."""
    weights: str | None = None
    """How the numbers of a base in GGUF are held in memory, in a sentence; None for any other base."""
    gap: Gap | None = None
    """What the prompt is worth to the base; None where that was not measured."""


def check(
    task: str | Path,
    *,
    schedule: str | Path | None = None,
    run: str | Path | None = None,
    probe: bool = True,
    gap: bool | None = None,
    backend: Backend | None = None,
    listeners: Listeners = QUIET,
) -> Plan:
    """Check a task and return what its run will cost, as `pilocal check` does; nothing is trained.

    Without `run` nothing is left behind; with it, templates and shots are kept there for the run to come. With `probe`
    one real step is taken to predict memory and time from, if the `backend` has one. With `gap` the base answers, to
    say what the prompt is worth; None means where that takes no more than a few minutes, and a probe is taken. Raises
    InputError, ModelError, or Faults with all that is wrong.
    """
    folder = path_of(run) if run else None
    path = path_of(schedule) if schedule else None
    with open_task(path_of(task), path, folder, listeners, backend, to_export=True) as context:
        if folder:
            describe(context)  # else the later run would take it for another's folder
        plan = plan_run(context, probe=probe, gap=gap)
        if folder and plan.gap:
            write_json(context.run.census, asdict(plan.gap))
        return plan


def plan_run(context: Context, *, probe: bool, gap: bool | None = False) -> Plan:
    """Return what every stage costs in tokens, memory and, with a probe (one real step), time; `gap` as for `check`.

    Raises InputError when a row is longer than the context, or answers to the test set could not be scored.
    """
    context.metric.check(context.task.test)
    stages, trained = render_stages(context), context.schedule.trained
    steps = context.schedule.steps(context.task.training.steps)
    plans = [StagePlan(n, stages[n].train, (), steps[n], context.run.stage(n), stages[n].generation) for n in trained]
    setup = training_setup(context.task, context.base, context.backend)
    forecast = setup.plan(plans, probe=probe, progress=context.progress)
    needs = dict(zip(trained, forecast.needs, strict=True))
    wanted = probe and not takes_long(context) if gap is None else gap
    found = measure_gap(context, stages) if wanted else None
    return Plan(
        context.base.context,
        [stage.budget for stage in stages],
        [needs.get(number) for number in range(len(stages))],
        forecast.memory,
        forecast.advice,
        (*_hints(context), *(found.hints if found else ())),
        forecast.weights,
        found,
    )


def _hints(context: Context) -> Iterator[str]:
    if tokens := context.base.default_system_tokens:
        if context.base.chat.default_system:
            what = f"{tokens} tokens of every bare query are a system message that the chat template writes by itself"
            yield f"{what}; [serving] default_system = false leaves it out"
        else:
            yield f"[serving] default_system = false makes every bare query {tokens} tokens shorter"
