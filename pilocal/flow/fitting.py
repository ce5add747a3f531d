"""The training of one adapter with the run's backend, for the steps train and direct_drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.setups import training_setup
from pilocal.flow.threads import Threads
from pilocal.run_folder.adapter import read_start
from pilocal.task import Training
from pilocal.task.schedule import Adaptive
from pilocal.task.tables import ANSWERS, DISTILL, GENPI
from pilocal.training.backend import MLX, TORCH
from pilocal.training.loop import train
from pilocal.training.row_order import StagePlan
from pilocal.training.tracker import Tracker, open_tracker


def training_facts(context: Context) -> list[Any]:
    """Return what determines every training besides its rows and its stages."""
    training = asdict(context.task.training)
    unread = _unread(context.task.training)
    training = {name: value for name, value in training.items() if name not in unread}
    precision = context.task.training.precision or "float32"
    return [asdict(context.task.lora), training, *context.backend.facts(precision)]


def _unread(read: Training) -> list[str]:
    """Return the settings that do not count for a training with these objectives, or that other steps' facts have."""
    unread = ["direct_drop", "direct_drop_steps", "on_policy", "on_policy_steps", "mix_queries", "mix_prompt"]
    unread += [name for name in ("mix", "restate") if not getattr(read, name)]
    if read.objective == ANSWERS:
        unread.append("objective")
    if read.objective != DISTILL:
        unread.append("distill_answers")
        unread += [field.name for field in fields(read) if field.name.startswith(DISTILL) and not read.mix]
    if read.objective != GENPI:
        unread += [field.name for field in fields(read) if field.name.startswith(GENPI)]
    return unread


def stage_plan(context: Context, number: int, steps: int, folder: Path) -> StagePlan:
    """Return the work of a stage, whose log, checkpoints and adapter go to `folder`."""
    return StagePlan(number, context.rows(number, "train"), context.rows(number, "valid"), steps, folder)


def fit(
    context: Context,
    plans: Sequence[StagePlan],
    key: str,
    name: str,
    *,
    adaptive: Adaptive | None = None,
    start: Path | None = None,
) -> list[Path]:
    """Train one adapter through all plans and return every file that is final; `name` is the step's.

    The training goes on from the adapter in the folder `start` where there is one.

    Raises TrainingError when the training cannot continue.
    """
    _describe(context, plans, name, may_end_early=adaptive is not None or context.task.training.patience is not None)
    options: dict[str, Any] = {"team": context.team}
    if context.backend.name == MLX and (context.team is None or context.team.size == 1):
        options["settle"] = Threads(context, name).settle
    if context.backend.name == TORCH:
        from pilocal.training.torch_backend.device import find_device

        find_device(context.backend.device)
        options["initial"] = partial(initial_adapter, context)
        options["peft"] = None if name == "direct_drop" else context.run.path / "adapter_peft"
    if start:
        options["initial"] = partial(read_start, start, context.task.lora, context.base.sha256)
    return train(
        training_setup(context.task, context.base, context.backend, **options),
        plans,
        key=key,
        progress=context.progress,
        warn=context.warn,
        name=name,
        adaptive=adaptive,
        track=partial(_open_tracker, context, name, key) if context.listeners.report_to else None,
    )


def _describe(context: Context, plans: Sequence[StagePlan], name: str, *, may_end_early: bool) -> None:
    """Record in run.json what a training is to do, from which those who watch it tell how long it will take."""
    training, path = context.task.training, context.run.path
    stages = [
        {
            "number": plan.number,
            "folder": plan.folder.relative_to(path).as_posix(),
            "steps": plan.steps,
            "tokens": round(plan.step_tokens(training)),
        }
        for plan in plans
    ]
    known = context.run.state.get("plan", {})
    context.run.describe(plan=known | {name: {"stages": stages, "may_end_early": may_end_early}})


def initial_adapter(context: Context) -> dict[str, Any] | None:
    """Return the adapter that PyTorch starts from: the user's, else MLX's; None where MLX cannot be imported."""
    task, given = context.task, context.backend.initial_adapter
    if given:
        return read_start(given, task.lora, context.base.sha256)
    try:
        from pilocal.training.mlx.adapter import initial_adapter as draw_in_mlx
    except ImportError:
        return None
    return draw_in_mlx(context.base, task.lora, task.training.seed)


def _open_tracker(context: Context, name: str, key: str, first: int) -> Tracker:
    """Open the requested tracker, below RUN/reports; the next line is that of the step after `first`."""
    task, kind = context.task, context.listeners.report_to
    assert kind
    settings = {
        "task": task.name,
        "stages": [stage.facts() for stage in context.schedule.stages],
        "lora": asdict(task.lora),
        "training": asdict(task.training),
    }
    return open_tracker(
        kind,
        context.run.path / "reports" / name,
        name=f"{task.name} {name}",
        key=key,
        config=settings,
        first=first,
        warn=context.warn,
    )
