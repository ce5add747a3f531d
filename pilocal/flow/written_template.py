"""What the adapter writes when it is asked for the template that it was trained with, and how much of it is there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pilocal.compress.entries import read_entries
from pilocal.flow.context import Context
from pilocal.flow.references import reference_loader
from pilocal.flow.template_rows import Window, generation_parts, request
from pilocal.prompt.tokens import answer_text, end_tokens, prompt_tokens, token_counter
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.task import Example
from pilocal.task.slots import stated

TOKEN = re.compile(r"\w+|[^\w\s]")
"""What is compared: words and signs, without capitals."""

MORE = 32
"""Tokens that the adapter may write beyond the length of a part."""


def written_template(context: Context, key: str) -> dict[str, Any]:
    """Return what metrics.json says about the template as the adapter writes it without a prompt, and the base.

    Each part is asked for with the first validation example. What was written is kept in RUN/written.json for this
    `key`, and not written again. Raises ModelError for damaged weights.
    """
    try:
        kept = read_json(context.run.written)
        texts = {name: str(kept[name]) for name in ("adapter", "base")} if kept["key"] == key else None
    except MISSHAPEN:
        texts = None
    if texts is None:
        texts = {"adapter": _write(context, context.run.adapter), "base": _write(context, None)}
        write_json(context.run.written, {"key": key} | texts)
    return recovered(context.task.template, texts["adapter"], texts["base"])


def recovered(template: str, written: str, base: str) -> dict[str, Any]:
    """Return the token F1 of each entry of a template in what was written, their mean, and that of the base."""
    entries = [entry.text for entry in read_entries(template)]
    found, before = ([entry_f1(entry, text) for entry in entries] for text in (written, base))
    lines = [{"entry": entry, "f1": round(f1, 4)} for entry, f1 in zip(entries, found, strict=True)]
    return {"f1": round(mean(found), 4), "base_f1": round(mean(before), 4), "entries": lines}


def entry_f1(entry: str, text: str) -> float:
    """Return the token F1 of an entry and of that passage of a text, as long as it is, that is most like it.

    >>> entry_f1("Dim the lamp.", "I always dim the red lamp."), entry_f1("Dim the lamp.", "So: dim the lamp .")
    (0.75, 1.0)
    >>> entry_f1("Dim the lamp.", "")
    0.0
    """
    wanted, said = _tokens(entry), _tokens(text)
    counts = Counter(wanted)
    passages = (said[begin : begin + len(wanted)] for begin in range(max(1, len(said) - len(wanted) + 1)))
    return max(2 * (counts & Counter(some)).total() / max(1, len(wanted) + len(some)) for some in passages)


def _tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def _write(context: Context, adapter: Path | None) -> str:
    """Return the parts of the template as the base writes them, with an adapter if one is given, joined."""
    count = token_counter(context.base.tokenizer)
    parts = generation_parts(context.task, count)
    prompts = [_prompt(context, part) for part in parts]
    said = _answers(context, adapter, prompts, max(count(part.text) for part in parts) + MORE)
    return "\n".join(answer_text(tokens, context.base.tokenizer) for tokens in said)


def _prompt(context: Context, part: Window) -> list[int]:
    example: Example = context.task.valid[0]
    asked = stated(example.slots) + request(example, part)
    return prompt_tokens([{"role": "user", "content": asked}], context.base.tokenizer)


def _answers(
    context: Context, adapter: Path | None, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    model = reference_loader(context)(context.base, adapter)
    return model.answer(
        prompts,
        ends=end_tokens(context.base.tokenizer),
        max_tokens=max_tokens,
        batch_size=context.task.generation.batch_size,
        progress=context.progress,
        name="template: adapter" if adapter else "template: base",
    )
