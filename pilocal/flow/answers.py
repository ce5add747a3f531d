"""What becomes of the answers between the files and the model: said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pilocal.flow.context import Context
from pilocal.prompt.tokens import Row


def warn_of_answers(context: Context, rows: Mapping[str, Sequence[Row | None]]) -> None:
    """Warn of answers that come back otherwise than they are written, and of those that an evaluation would cut.

    `rows` are those of the last answers, by split: their completions are the answers alone, as in every stage without a
    working. None stands for an answer that is neither.
    """
    layout = context.base.layout
    if layout.before_answer or layout.after_answer:
        what = f"puts {layout.before_answer!r} before and {layout.after_answer!r} after every answer"
        context.warn(f"{context.base.path}: the chat template {what}, and so will what is served")
    for split, of_split in rows.items():
        _warn_of_changed(context, split, of_split)
        if split != "train":
            _warn_of_long(context, split, of_split)


def _warn_of_changed(context: Context, split: str, rows: Sequence[Row | None]) -> None:
    """Warn of answers that the tokenizer changes, such as those in Unicode's form NFD by Qwen's."""
    pairs = zip(getattr(context.task, split), rows, strict=True)
    changed = [example.id for example, row in pairs if row and not context.base.layout.keeps(row, example.answer)]
    if changed:
        what = f"changes {len(changed)} of {len(rows)} answers, such as that of {changed[0]}"
        context.warn(f"{context.task.files[split]}: the base's tokenizer {what}; they come back otherwise")


def _warn_of_long(context: Context, split: str, rows: Sequence[Row | None]) -> None:
    """Warn of reference answers that no answer can match, because it ends at [generation] max_tokens."""
    limit = context.task.generation.max_tokens
    longer = [len(row.last_answer) - 1 for row in rows if row and len(row.last_answer) - 1 > limit]
    if longer:
        what = f"{len(longer)} of {len(rows)} reference answers are longer than [generation] max_tokens = {limit}"
        fix = f"raise it to at least {max(longer)}"
        context.warn(f"{context.task.files[split]}: {what} and can never be matched; {fix}")
