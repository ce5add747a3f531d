"""The data sets of all stages, written by reference; and that no row of them is too long, without cutting every row.

The tokens of each example are counted once. Of many rows only those are cut whole that have the most tokens by the sum
of their parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pilocal.errors import PilocalError, raise_all
from pilocal.flow.answers import warn_of_answers
from pilocal.flow.context import Context
from pilocal.flow.rendering import SPLITS, Asked, nearest_of, record_of, rows_to_ask, stage_over_context
from pilocal.prompt.render import render
from pilocal.prompt.tokens import Row, tokenize_all
from pilocal.run_folder.references import FADED, forget_examples, header_of, write_examples, write_references
from pilocal.run_folder.rows import write_records
from pilocal.task import Example
from pilocal.task.working import working_of

MANY = 5_000
"""Where all stages have more rows, only the longest of each are cut whole."""

LONGEST = 64
"""So many of every split."""

ROUGH = 5_000
"""Of a split with more examples only those are asked alone whose answers may come to harm."""

EVERY = 1_000
"""Examples between two words of progress."""

NEAR = 8
"""Tokens by which an answer that is cut alone may have fewer than in its row."""


def write_stages(context: Context) -> list[Path]:
    """Write every stage's data sets into the run, once all of them are right; return the files.

    Warns of answers that an evaluation would cut. Raises InputError, or Faults with every such stage, when a row is
    longer than the base's context; RunError on a full disk.
    """
    asked = rows_to_ask(context)
    check_rows(context, asked)
    task, folder = context.task, context.run.stage(0).parent
    texts = {split: write_examples(folder, split, getattr(task, split)) for split in SPLITS}
    files = list(texts.values())
    for number, template in enumerate(context.templates):
        for split, some in asked.items():
            path = context.run.stage(number) / f"{split}.jsonl"
            if split in SPLITS:
                header = header_of(template.text, context.schedule.stages[number].working, texts[split], texts["train"])
                chosen = (nearest_of(context, number, shots) for _, shots in some)
                files.append(write_references(path, header, chosen))
            else:
                records = (record_of(context, number, split, example, shots) for example, shots in some)
                files.append(write_records(path.parent, split, records))
    forget_examples(texts.values())
    return files


def check_rows(context: Context, asked: dict[str, list[Asked]]) -> None:
    """Raise InputError, or Faults, for rows that exceed the base's context; warn of answers that come to harm."""
    alone = {split: _asked_alone(context, split, some) for split, some in asked.items()}
    warn_of_answers(context, {split: alone[split][0] for split in SPLITS})
    sizes = {split: lengths for split, (_, lengths) in alone.items()}
    faults, stages = list[PilocalError](), context.schedule.stages
    for number in range(len(stages)):
        longest = 0
        for done, (split, some) in enumerate(asked.items(), 1):
            for place in _longest(context, number, split, some, sizes):
                example, shots = some[place]
                where = f"stage {number}, {split} {example.id}"
                record = record_of(context, number, split, example, shots)
                rows = tokenize_all(record, context.base.tokenizer, where)
                longest = max(longest, *(len(row.tokens) for row in rows))
            context.progress("render", number * len(asked) + done, len(asked) * len(stages))
        faults += stage_over_context(context, number, longest)
    raise_all(faults)


def _asked_alone(context: Context, split: str, asked: Sequence[Asked]) -> tuple[list[Row | None], list[int]]:
    """Return of each example, asked alone, its last answer behind a single token, and the tokens of its whole row.

    Of many examples the tokens are those of the texts, and None stands for an answer that comes back as it is written
    and is not cut.
    """
    answers, sizes = list[Row | None](), list[int]()
    for start in range(0, len(asked), EVERY):
        some = [example for example, _ in asked[start : start + EVERY]]
        lengths, harmless = _rough(context, some) if len(asked) > ROUGH else ([], [False] * len(some))
        for example, known in zip(some, harmless, strict=True):
            where = f"{split} {example.id}"
            row = None if known else tokenize_all(render("", [], example), context.base.tokenizer, where)[-1]
            if len(asked) <= ROUGH and row:
                sizes.append(len(row.tokens))
            answers.append(row and Row(row.tokens[len(row.tokens) - len(row.last_answer) - 1 :], 1))
        sizes += lengths
        context.progress(f"tokens: {split}", start + len(some), len(asked))
    return answers, sizes


def _rough(context: Context, examples: Sequence[Example]) -> tuple[list[int], list[bool]]:
    """Return the tokens of all texts of each example, and whether its answer comes back, and within max_tokens."""
    tokenizer, limit = context.base.tokenizer.backend_tokenizer, context.task.generation.max_tokens

    def cut(texts: list[str]) -> list[list[int]]:
        return [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    asked = cut(
        ["\n".join([*each.slots.values(), *(text for _, text in each.history), each.query]) for each in examples]
    )
    answers = cut([each.answer for each in examples])
    said = tokenizer.decode_batch(answers, skip_special_tokens=False)
    harmless = [
        text == example.answer and len(answer) + NEAR <= limit
        for text, example, answer in zip(said, examples, answers, strict=True)
    ]
    return [len(query) + len(answer) for query, answer in zip(asked, answers, strict=True)], harmless


def _longest(
    context: Context, number: int, split: str, asked: Sequence[Asked], sizes: dict[str, list[int]]
) -> Sequence[int]:
    """Return the places of the rows that may be a stage's longest of a split: all where there are few."""
    if len(context.schedule.stages) * sum(map(len, sizes.values())) <= MANY or len(asked) <= LONGEST:
        return range(len(asked))
    working, shots_of = context.schedule.stages[number].working, sizes["train"]

    def tokens(place: int) -> int:
        example, chosen = asked[place]
        before = len(working_of(example)) if working and split in FADED else 0  # a token has a character at least
        return sizes[split][place] + before + sum(shots_of[i] for i in nearest_of(context, number, chosen))

    return sorted(range(len(asked)), key=lambda place: (-tokens(place), place))[:LONGEST]
