"""What to replay of a run: its own rows in the order in which it trained on them, and the learning rates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pilocal
from pilocal.errors import InputError, RunError
from pilocal.flow.context import Context
from pilocal.flow.steps import STAGES
from pilocal.parity.replay import Replay, ReplayStage, ReplayStep, check_ids, check_lora
from pilocal.run_folder.log import FILE, read_log
from pilocal.task.tables import ANSWERS, DISTILL
from pilocal.training.learning_rate import learning_rate
from pilocal.training.row_order import RowOrder


def check_stages(context: Context) -> None:
    """Raise RunError unless the run's stages are those of its task, its base and this version."""
    run, made = context.run, context.run.state.get("versions", {}).get("pilocal")
    again = "`pilocal stages TASK --run DIR` makes them again"
    if made != pilocal.__version__:
        fix = f"use that version (this is {pilocal.__version__}), or run again"
        raise RunError(run.path, "the run was made by another version of pilocal", got=made, fix=fix)
    if context.run.state.get("base_sha256") != context.base.sha256:
        fix = "bring back the base that the run was made with, or run again"
        raise RunError(
            run.path, "the base is not the one that the run was made with", got=str(context.base.path), fix=fix
        )
    if "stages" not in run.state["steps"]:
        raise RunError(run.path, "the run has no stages yet", fix="`pilocal stages TASK --run DIR` first")
    if not STAGES.is_done(context):
        raise RunError(run.path, "the task has changed since its stages were made", fix=again)


def read_replay(context: Context, steps: int) -> Replay:
    """Return `steps` optimizer steps on the stages of a run, in float32; the schedule divides them among the stages.

    Raises InputError if the steps do not reach every stage, if there is dropout, or for another objective than answers
    or unrelated requests; RunError for a run that goes on from another.
    """
    task, trained = context.task, context.schedule.trained
    check_lora(task.lora)
    if task.training.objective != ANSWERS:
        what = "parity replays the loss on answers"
        if task.training.objective == DISTILL:
            what += "; a distillation begins at 0, where ratios say nothing"
        fix = 'replay a run with objective = "answers" on the same rows'
        raise InputError("[training] objective", what, got=task.training.objective, fix=fix)
    if task.training.mix:
        what = "parity replays the task's rows alone, without unrelated requests"
        raise InputError(
            "[training] mix", what, got=task.training.mix, fix="replay a run with mix = 0 on the same rows"
        )
    if context.start is not None:
        what = "parity replays a run from its beginning, and this one goes on from another"
        raise RunError(context.run.path, what, got=str(context.start.run), fix="replay that one")
    if steps < len(trained):
        fix = f"give {len(trained)} or more"
        raise InputError("--steps", f"there are {len(trained)} stages to pass through", got=steps, fix=fix)
    training = replace(task.training, steps=steps, precision="float32")
    stages, taken = [], 0
    for number in trained:
        stage, count = context.schedule.stages[number], context.schedule.steps(steps)[number]
        rows = context.train_rows(number)
        order = RowOrder(rows, training.batch_size, (training.seed, number))
        rates = [learning_rate(step, steps, training) for step in range(taken, taken + count)]
        played = tuple(ReplayStep(rate, tuple(order.rows_at(nth))) for nth, rate in enumerate(rates))
        stages.append(ReplayStage(number, stage.tau, stage.shots, played))
        taken += count
    replay = Replay(base=context.base, lora=task.lora, training=training, stages=tuple(stages))
    check_ids(replay, str(context.run.path))
    return replay


def logged(context: Context, replay: Replay) -> dict[str, Any] | None:
    """Compare what a run's own log says of the steps with their rows; None if the run has not trained.

    The first steps of a stage have the same rows whatever the run's length, so their tokens must be as many as the log
    says. `first_loss` is the run's loss at its very first step, before anything was learned.
    """
    compared, differing, first_loss = 0, [], None
    for stage in replay.stages:
        try:
            lines = read_log(context.run.stage(stage.number) / FILE)
        except RunError:
            continue
        if first_loss is None and stage is replay.stages[0] and lines:
            first_loss = lines[0].loss
        for nth, (step, line) in enumerate(zip(stage.steps, lines, strict=False), 1):
            counts = sum(len(row.tokens) for row in step.rows), sum(len(row.completion) for row in step.rows)
            compared += 1
            if counts != (line.tokens, line.trained_tokens):
                differing.append(f"stage {stage.number}, its step {nth}")
    if not compared:
        return None
    first = differing[0] if differing else None
    return {"steps": compared, "differing": len(differing), "first": first, "first_loss": first_loss}
