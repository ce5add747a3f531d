"""The stages of a run, written for another trainer."""

from __future__ import annotations

from pathlib import Path

from pilocal.errors import InputError, did_you_mean
from pilocal.flow.context import Context
from pilocal.flow.formats import HOSTS, write_hosted
from pilocal.flow.formats.mlx import write_mlx
from pilocal.flow.formats.order import Order, StageSet
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.opening import default_run, open_task
from pilocal.flow.rendering import RESTATED
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import STAGES
from pilocal.prompt.render import each_answer
from pilocal.task.tables import GENPI
from pilocal.training.learning_rate import learning_rate

MLX = "mlx"
"""The format of stock mlx_lm.lora."""


def write_stages(
    task: str | Path,
    form: str,
    *,
    schedule: str | Path | None = None,
    run: str | Path | None = None,
    listeners: Listeners = QUIET,
) -> Order:
    """Render a task's stages and write them for another trainer, as `pilocal stages --format` does.

    Paths and errors are those of `flow.run.run`; `form` is one of HOSTS or "mlx", else InputError is raised.
    """
    if form not in (*HOSTS, MLX):
        raise InputError("form", "there is no such format", got=form, fix=did_you_mean(form, (*HOSTS, MLX)))
    folder = Path(run) if run else default_run(Path(task))
    with open_task(Path(task), Path(schedule) if schedule else None, folder, listeners) as context:
        run_steps(context, STAGES)
        return write_format(context, form)


def write_format(context: Context, form: str) -> Order:
    """Write the stages for another trainer (one of HOSTS or "mlx") into RUN/<form>, once the step "stages" is done.

    Stages without optimizer steps are left out. Raises RunError when the disk is full.
    """
    task, folder = context.task, context.run.path / form
    if task.training.objective == GENPI:
        context.warn(f"{folder}: the rows that write the template are not in these files; pilocal alone weighs them")
    sets = _stage_sets(context, form)
    if form in HOSTS:
        _warn_of_weights(context, form)
        return write_hosted(HOSTS[form], sets, folder, task.training, context.warn, context.residue)
    if not context.base.stock_reads_rope:
        fix = "write them as rope_theta and rope_scaling, too"
        context.warn(f"{context.base.folder / 'config.json'}: mlx_lm.lora does not read rope_parameters; {fix}")
    if context.base.chat.facts:
        what = "mlx_lm.lora writes chats by the base's own chat template, not as this task's settings want them"
        context.warn(f"{task.files['task']}: {what}; put the chat template into a copy of the base")
    if context.base.gguf:
        fix = "give --model a folder of the same model"
        context.warn(f"{context.base.path}: mlx_lm.lora does not read GGUF; {fix}")
    return write_mlx(sets, folder, context.base.address, task.lora, task.training, context.residue)


def _warn_of_weights(context: Context, form: str) -> None:
    """Warn of answers that are to be read and not learned, where a host learns them."""
    rows = sum(bool(example.unlearned) for example in context.task.train)
    if HOSTS[form].weights or not rows:
        return
    what = f'{HOSTS[form].title} has no weights: it also learns the answers of "weight": 0 in {rows} rows'
    context.warn(f"{context.task.files['train']}: {what}; leave these rows out, or the turns")


def _stage_sets(context: Context, form: str) -> list[StageSet]:
    training, total = context.task.training, context.task.training.steps
    sets, first, steps = list[StageSet](), 0, context.schedule.steps(total)
    for done, number in enumerate(context.schedule.trained, 1):
        stage = context.schedule.stages[number]
        train, valid = context.train_rows(number), context.rows(number, "valid")
        records = {"train": context.records(number, "train"), "valid": context.records(number, "valid")}
        if training.restate:
            records["train"] += context.records(number, RESTATED)
        if form == MLX:  # it learns the last answer of a record alone
            records = {split: [one for each in some for one in each_answer(each)] for split, some in records.items()}
        sets.append(
            StageSet(
                number=number,
                tau=stage.tau,
                shots=stage.shots,
                working=stage.working,
                train=records["train"],
                valid=records["valid"],
                tokens=sum(len(row.tokens) for row in train),
                longest=max(len(row.tokens) for row in (*train, *valid)),
                rates=[learning_rate(step, total, training) for step in range(first, first + steps[number])],
            )
        )
        first += steps[number]
        context.progress(form, done, len(context.schedule.trained))
    return sets
