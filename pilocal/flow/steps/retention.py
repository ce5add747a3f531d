"""retention: how far the adapter lies from the base on unrelated prompts, into RUN/retention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pilocal
from pilocal.base.reference import kept_loader
from pilocal.errors import ExportError
from pilocal.flow.context import Context
from pilocal.flow.references import trainer_loader
from pilocal.flow.step import Step
from pilocal.flow.steps.stages import residue_facts
from pilocal.flow.steps.strength import STRENGTH, adapter_facts
from pilocal.flow.steps.train import TRAIN
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.hashes import fingerprint

if TYPE_CHECKING:
    from pilocal.evaluate.retention import Pair, Said
    from pilocal.task import Example


def _facts(context: Context) -> list[Any]:
    from pilocal.evaluate.retention import unrelated_prompts

    prompts = [example.facts for example in unrelated_prompts(context.task)]
    return [prompts, context.task.evaluation.unrelated_tokens, *adapter_facts(context)]


def _make(context: Context, key: str) -> list[Path]:
    from pilocal.evaluate.retention import GROUP, Pair, summarize, unrelated_prompts

    task, folder = context.task, context.run.retention
    examples = unrelated_prompts(task)
    pair = Pair(
        base=context.base,
        adapter=context.run.adapter,
        load=kept_loader(trainer_loader(context)),
        max_tokens=task.evaluation.unrelated_tokens,
        batch_size=task.generation.batch_size,
        progress=context.progress,
        request=context.request,
    )
    said_file, file = folder / "base.json", folder / "adapter.json"
    said = _base_says(context, pair, examples, said_file)
    lines = _known(file, key, "prompts")
    while len(lines) < len(examples):
        group = slice(len(lines), len(lines) + GROUP)
        lines += pair.compare(examples[group], said[group])
        write_json(file, {"key": key, "prompts": lines})
    write_json(file, {"key": key} | {"summary": summarize(lines, examples), "prompts": lines})
    return [said_file, file]


def _base_says(context: Context, pair: Pair, examples: Sequence[Example], file: Path) -> list[Said]:
    """Return the base's answers; those of an earlier adapter's comparison are kept."""
    from pilocal.evaluate.retention import GROUP

    how = [context.base.sha256, context.base.chat.facts, context.backend.name]
    asked = [[example.query for example in examples], *residue_facts(context)]
    key = fingerprint(pilocal.__version__, how, pair.max_tokens, *asked)
    said: list[Said] = [tuple(tokens) for tokens in _known(file, key, "answers")]
    while len(said) < len(examples):
        said += pair.base_says(examples[len(said) : len(said) + GROUP])
        write_json(file, {"key": key, "answers": said})
    return said


def _known(file: Path, key: str, name: str) -> list[Any]:
    """Return the lines that a file has already, under the same key."""
    try:
        found = read_json(file)
        return list(found[name]) if found["key"] == key else []
    except MISSHAPEN:
        return []


RETENTION = Step(name="retention", needs=(TRAIN,), also=(STRENGTH,), facts=_facts, make=_make)


def read_retention(context: Context) -> dict[str, Any]:
    """Return what metrics.json says of unrelated prompts, measured first where it is not known."""
    key = RETENTION.key(context)
    if not RETENTION.is_done(context):
        context.run.finish(RETENTION.name, key, RETENTION.make(context, key), 0.0)
    found: dict[str, Any] = read_json(context.run.retention / "adapter.json")["summary"]
    return found


def refuse_forgetting(context: Context, *, accept_loss: bool) -> None:
    """Raise ExportError for an adapter that is further from the base on unrelated prompts than the task allows.

    With `accept_loss`, in the task or here, there is a warning instead.
    """
    limit = context.task.export.retention
    if limit is None:
        return
    found = read_retention(context)
    if found["kl"] <= limit:
        return
    lies = f"{found['kl']:.2g} nats per token from the base on {found['prompts']} unrelated prompts"
    what = f"{lies}, where {limit:g} are allowed"
    if accept_loss or context.task.export.accept_loss:
        context.warn(f"[export] retention: {what}; accepted")
        return
    fix = "train fewer steps or at a lower rate, raise it, or accept the loss ([export] accept_loss, --accept-loss)"
    raise ExportError("[export] retention", f"refused: {what}", fix=fix)
