"""Running the steps: first the steps that a step needs, then the step itself; what is done is skipped."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace

from pilocal.errors import InputError, did_you_mean
from pilocal.flow.context import Context
from pilocal.flow.exporting import follow_task
from pilocal.flow.followers import leading
from pilocal.flow.listeners import StepResult
from pilocal.flow.step import Step
from pilocal.flow.steps import EVALUATE, STEPS
from pilocal.flow.steps.export import EXPORT
from pilocal.packages import require_packages, versions
from pilocal.run_folder.hashes import hashes
from pilocal.run_folder.live import LiveFile
from pilocal.training.backend import MLX

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "numpy")
"""Packages whose versions are in run.json, beside that of pilocal."""


def step_named(name: str) -> Step:
    """Return the step of that name; raises InputError when there is none."""
    for step in STEPS:
        if step.name == name:
            return step
    fix = did_you_mean(name, [step.name for step in STEPS])
    raise InputError("step", "there is no such step", got=name, fix=fix)


def run_steps(context: Context, last: Step) -> None:
    """Run every step that `last` needs and `last` itself, skipping what is done; the listeners are told of each.

    If several processes were launched together and a step trains, this one leads them. Raises InputError,
    before any work, when answers to the test set could not be scored or a package is missing.
    """
    if last is EVALUATE:
        context.metric.check(context.task.test)
    steps = [step for step in STEPS if last.uses(step) and step.wanted(context)]
    if any(step.trains for step in steps) and context.backend.name == MLX:
        require_packages("--backend mlx", "mlx", "mlx_lm")
    if EXPORT in steps:
        require_packages("export", "llama_cpp")
    describe(context)
    with shown(context, steps), leading(context) if any(step.trains for step in steps) else nullcontext():
        for step in steps:
            context.listeners.step(run_step(context, step))
    follow_task(context)


@contextmanager
def shown(context: Context, steps: Sequence[Step]) -> Iterator[None]:
    """While the block lasts, keep what the run does in live.json, for those who watch its folder."""
    heard = context.listeners
    with LiveFile(context.run.live, [step.name for step in steps]) as live:

        def begin(name: str) -> None:
            live.begin(name)
            heard.begin(name)

        def step(result: StepResult) -> None:
            live.finish()
            heard.step(result)

        def progress(what: str, done: int, total: int, note: str = "") -> None:
            live.report(what, done, total, note)
            heard.progress(what, done, total, note)

        context.listeners = replace(heard, begin=begin, step=step, progress=progress)
        try:
            yield
        finally:
            context.listeners = heard


def run_step(context: Context, step: Step) -> StepResult:
    """Run one step unless it is done; the steps that it needs must be done."""
    key = step.key(context)
    if context.run.is_done(step.name, key) or _spared(context, step, key):
        return StepResult(step.name, True, 0.0)
    context.listeners.begin(step.name)
    began = time.monotonic()
    files = step.make(context, key)
    seconds = time.monotonic() - began
    context.run.finish(step.name, key, files, seconds)
    return StepResult(step.name, False, seconds, step.note(context))


def _spared(context: Context, step: Step, key: str) -> bool:
    """Tell whether what a step wrote was cleaned away, and no training is left that would read it."""
    done = context.run.state["steps"].get(step.name, {})
    if not done.get("cleaned") or done["key"] != key:
        return False
    trainings = [other for other in STEPS if other.trains and other.uses(step) and other.wanted(context)]
    return all(training.is_done(context) for training in trainings)


def describe(context: Context) -> None:
    """Record in run.json what the run is made from."""
    task, schedule = context.task, context.schedule
    context.run.describe(
        versions=versions(*PACKAGES) | {"python": platform.python_version()},
        seed=task.training.seed,
        model=task.model,
        base_sha256=context.base.sha256,
        **({"base_revision": context.base.revision} if context.base.revision else {}),
        chat=context.base.chat.facts,
        inputs=hashes(task.files),
        warnings=list(context.warnings),
        schedule=[stage.facts() for stage in schedule.stages],
        adaptive=asdict(schedule.adaptive) if schedule.adaptive else None,
        task_file=task.files["task"].name,
        backend=context.backend.as_json(),
        **({"start": context.start.as_json()} if context.start else {}),
    )
