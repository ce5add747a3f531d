"""The stages of a run, written for another trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
from pilocal.prompt.render import Record, each_answer
from pilocal.prompt.tokens import tokenize_all
from pilocal.run_folder.rows import located_records
from pilocal.task.tables import GENPI
from pilocal.training.learning_rate import learning_rate

MLX = "mlx"
"""The format of stock mlx_lm.lora."""

EVERY = 100
"""Records between two words of progress."""


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


@dataclass(frozen=True, slots=True)
class _Stored:
    """The records of a stage, read from their files anew each time."""

    folder: Path
    splits: tuple[str, ...]
    apart: bool
    """Whether each answer that is learned has a record of its own."""
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Record]:
        for split in self.splits:
            for _, record in located_records(self.folder, split):
                yield from each_answer(record) if self.apart else (record,)


def _stage_sets(context: Context, form: str) -> list[StageSet]:
    training, total = context.task.training, context.task.training.steps
    sets, first, steps = list[StageSet](), 0, context.schedule.steps(total)
    for number in context.schedule.trained:
        stage = context.schedule.stages[number]
        train, tokens, longest = _measured(context, form, number, "train")
        valid, _, longest_valid = _measured(context, form, number, "valid")
        sets.append(
            StageSet(
                number=number,
                tau=stage.tau,
                shots=stage.shots,
                working=stage.working,
                train=train,
                valid=valid,
                tokens=tokens,
                longest=max(longest, longest_valid),
                rates=[learning_rate(step, total, training) for step in range(first, first + steps[number])],
            )
        )
        first += steps[number]
    return sets


def _measured(context: Context, form: str, number: int, split: str) -> tuple[_Stored, int, int]:
    """Return the records of a stage, the tokens of all their rows, and those of the longest; one row at a time."""
    restates = split == "train" and context.task.training.restate
    splits, folder = (split, RESTATED) if restates else (split,), context.run.stage(number)
    apart = form == MLX  # it learns the last answer of a record alone
    count, tokens, longest = 0, 0, 0
    for done, (where, record) in enumerate((one for each in splits for one in located_records(folder, each)), 1):
        count += len(each_answer(record)) if apart else 1
        for row in tokenize_all(record, context.base.tokenizer, where):
            tokens, longest = tokens + len(row.tokens), max(longest, len(row.tokens))
        if done % EVERY == 0 or done == len(getattr(context.task, split)):
            context.progress(f"{form}: stage {number}, {split}", done, max(done, len(getattr(context.task, split))))
    return _Stored(folder, splits, apart, count), tokens, longest
