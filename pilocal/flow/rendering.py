"""Every record of every stage: rendered, tokenized and measured.

A record's completion is the same in every stage: the answer. A schedule that fades the working is the one exception. It
says in each stage's record how much of the working stands before the answers of training and validation; shots and the
test have answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from pilocal.compress import CompressedTemplate
from pilocal.errors import InputError, PilocalError, raise_all
from pilocal.flow.answers import warn_of_answers
from pilocal.flow.context import Context
from pilocal.flow.template_rows import generation_examples, generation_parts, restated_examples
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import Row, token_counter, tokenize_all
from pilocal.run_folder.references import FADED
from pilocal.task import Example
from pilocal.task.schedule import Stage
from pilocal.task.tables import GENPI
from pilocal.task.working import faded

SPLITS = ("train", "valid", "test")

GENERATION, RESTATED = "generation", "restated"
"""The files of the rows that write the template, and of those that restate it."""

SHORTER = "shorten the template, lower shots, or take a model with a longer context"
"""What to do about rows that exceed the context."""

Asked = tuple[Example, tuple[int, ...]]
"""An example and its shots, numbers of training examples, least similar first."""


@dataclass(frozen=True, slots=True)
class StageBudget:
    """What one stage costs in tokens."""

    tau: float
    shots: int
    steps: int
    template_tokens: int
    ratio: float
    """The realised share of the template's tokens."""
    prompt_tokens: float
    """Mean over the training rows."""
    longest_row: int
    """Tokens of the longest row of any split, prompt and completion."""
    working: float = 0.0
    """The share of the working that stands before the answers; 0 where there are answers alone."""


@dataclass(frozen=True, slots=True)
class RenderedStage:
    """One stage's records."""

    records: dict[str, list[Record]]
    """By split; those of GENERATION and RESTATED, too, if there are any."""
    train: list[Row]
    """The training records as tokens, with those that restate the template."""
    valid: list[Row]
    """The validation records as tokens."""
    budget: StageBudget
    generation: list[Row]
    """What writes the template, as tokens."""


def render_stages(context: Context) -> list[RenderedStage]:
    """Render and measure every record of every stage; warn of answers that an evaluation would cut.

    Raises InputError, or Faults with every such stage, when a row is longer than the base's context.
    """
    faults = list[PilocalError]()
    asked, rendered = rows_to_ask(context), []
    for number, template in enumerate(context.templates):
        done = _render_stage(context, number, template, asked)
        faults += stage_over_context(context, number, done.budget.longest_row)
        rendered.append(done)
    raise_all(faults)
    return rendered


def stage_over_context(context: Context, number: int, longest: int) -> list[InputError]:
    """Return the fault of a stage whose longest row has so many tokens, if that is more than the base's context."""
    stage, training, fix = context.schedule.stages[number], context.task.training, SHORTER
    if training.objective == GENPI and stage.tau == 0:
        fix = f"lower [training] genpi_window (now {training.genpi_window})"
    where = f"stage {number} (tau {stage.tau:g}, {stage.shots} shots)"
    return over_context(where, "the longest row", longest, context.base.context, fix=fix)


def over_context(where: str, what: str, tokens: int, limit: int, *, fix: str = SHORTER) -> list[InputError]:
    """Return the fault of so many tokens, if they are more than a context of `limit` holds."""
    if tokens <= limit:
        return []
    return [InputError(where, f"{what} is {tokens - limit} tokens over the model's context of {limit}", fix=fix)]


def choose_shots(context: Context) -> dict[str, list[tuple[int, ...]]]:
    """Return the shots of every example of every split, numbers of training examples, least similar first."""
    task, picker, count = context.task, context.picker, context.max_shots

    def for_queries(examples: tuple[Example, ...]) -> list[tuple[int, ...]]:
        return picker.for_queries([(example.query, example.history) for example in examples], count)

    return {
        "train": [picker.for_training(i, count) for i in range(len(task.train))],
        "valid": for_queries(task.valid),
        "test": for_queries(task.test),
    }


def rows_to_ask(context: Context) -> dict[str, list[Asked]]:
    """Return what is asked in every stage, by the file that it is written into."""
    task, shots, count = context.task, choose_shots(context), token_counter(context.base.tokenizer)
    found = {split: list(zip(getattr(task, split), shots[split], strict=True)) for split in SPLITS}
    if parts := generation_parts(task, count):
        writing = ((generation_examples(one, parts, task.files["train"]), chosen) for one, chosen in found["train"])
        found[GENERATION] = [(example, chosen) for examples, chosen in writing for example in examples]
    if said := restated_examples(task, count):
        found[RESTATED] = [(example, ()) for example in said]
    return found


def _render_stage(
    context: Context, number: int, template: CompressedTemplate, asked: dict[str, list[Asked]]
) -> RenderedStage:
    stage = context.schedule.stages[number]
    records: dict[str, list[Record]] = {}
    rows: dict[str, list[list[Row]]] = {}
    for done, split in enumerate(asked, 1):
        records[split], rows[split] = [], []
        for example, chosen in asked[split]:
            record = record_of(context, number, split, example, chosen)
            records[split].append(record)
            rows[split].append(tokenize_all(record, context.base.tokenizer, f"stage {number}, {split} {example.id}"))
        context.progress("render", number * len(asked) + done, len(asked) * len(context.schedule.stages))
    if number == context.last_stage:
        warn_of_answers(context, {split: [each[-1] for each in rows[split]] for split in SPLITS})
    flat = {split: [row for each in found for row in each] for split, found in rows.items()}
    train = flat["train"] + flat.get(RESTATED, [])
    budget = _budget(context, stage, number, template, flat)
    return RenderedStage(records, train, flat["valid"], budget, flat.get(GENERATION, []))


def record_of(context: Context, number: int, split: str, example: Example, chosen: Sequence[int]) -> Record:
    """Return the record of a stage that asks an example; `chosen` are the shots of the stage that has the most."""
    stage, nearest = context.schedule.stages[number], nearest_of(context, number, chosen)
    shown = faded(example, stage.working) if split in FADED else example
    return render(context.templates[number].text, [context.task.train[i] for i in nearest], shown)


def nearest_of(context: Context, number: int, chosen: Sequence[int]) -> Sequence[int]:
    """Return those of the shots that a stage has."""
    return chosen[max(0, len(chosen) - context.schedule.stages[number].shots) :]


def _budget(
    context: Context, stage: Stage, number: int, template: CompressedTemplate, rows: dict[str, list[Row]]
) -> StageBudget:
    return StageBudget(
        tau=stage.tau,
        shots=stage.shots,
        steps=context.schedule.steps(context.task.training.steps)[number],
        template_tokens=template.tokens,
        ratio=template.ratio,
        prompt_tokens=mean(len(row.tokens) - len(row.completion) for row in rows["train"]),
        longest_row=max(len(row.tokens) for split in rows.values() for row in split),
        working=stage.working,
    )
