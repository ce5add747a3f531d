"""What becomes of the answers between the files and the model: said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pilocal.flow.context import Context
from pilocal.prompt.tokens import Row


def warn_of_changed_answers(context: Context, rows: Mapping[str, Sequence[Row]]) -> None:
    """Warn of white space that the base's chat template puts around answers, and of answers that its tokenizer changes.

    `rows` are one stage's, by split; the completions are the same in every stage.
    """
    layout = context.base.layout
    if layout.before_answer or layout.after_answer:
        what = f"puts {layout.before_answer!r} before and {layout.after_answer!r} after every answer"
        context.warn(f"{context.base.folder}: the chat template {what}, and so will what is served")
    for split, of_split in rows.items():
        examples = getattr(context.task, split)
        changed = [
            example.id for example, row in zip(examples, of_split, strict=True) if not layout.keeps(row, example.answer)
        ]
        if changed:
            what = f"{len(changed)} of {len(examples)} answers, such as that of {changed[0]}"
            context.warn(f"{context.task.files[split]}: the base's tokenizer changes {what}; they come back otherwise")
