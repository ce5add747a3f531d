"""edit: of a run that goes on from another, what has changed in the template, and the adapter of before, RUN/edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.flow.context import Context
from pilocal.flow.start import WRITE_SLOTTED, Start, find_edit, read_former
from pilocal.flow.step import Step
from pilocal.run_folder.adapter import copy_adapter
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.training.row_order import StagePlan, Stream

SHOWN = 12
"""Changes that are named in the line about the step."""


def edited(context: Context, plan: StagePlan) -> StagePlan:
    """Return the work of the last stage with the rows that touch the change first; the others are replayed beside them.

    Raises RunError when edit.json is missing.
    """
    start, said = _start(context), _read(context)
    touching, task, count = set(said["touched"]), context.task, start.replayed(context.task)
    sizes = map(len, context.rows_of_each(plan.number, "train"))
    owners = [example.id for example, size in zip(task.train, sizes, strict=True) for _ in range(size)]
    own, restated = plan.train[: len(owners)], plan.train[len(owners) :]
    pairs = list(zip(owners, own, strict=True))
    others = [row for owner, row in pairs if owner not in touching]
    return replace(
        plan,
        train=[*(row for owner, row in pairs if owner in touching), *restated],
        steps=start.steps_of(task),
        beside=(Stream(others, count),) if others and count else (),
    )


def _start(context: Context) -> Start:
    assert context.start is not None
    return context.start


def _read(context: Context) -> dict[str, Any]:
    path = context.run.edit / "edit.json"
    try:
        found: dict[str, Any] = read_json(path)
        _ = found["touched"]
    except MISSHAPEN:
        raise RunError(path, "missing or damaged", fix="delete it and run the same command again") from None
    return found


def _wanted(context: Context) -> bool:
    return context.start is not None


def _facts(context: Context) -> list[Any]:
    start, task = _start(context), context.task
    examples = [[example.id, example.history, example.asked, example.answer] for example in task.train]
    return [start.sha256, start.steps_of(task), start.replayed(task), task.template, examples]


def _make(context: Context, key: str) -> list[Path]:
    start, task, folder = _start(context), context.task, context.run.edit
    former = read_former(start.folder)
    if former.sha256 != start.sha256:
        raise RunError(start.folder, "the run to go on from has changed since", fix="name it again, with --from")
    edit = find_edit(task, former)
    if count := len(edit.missed):
        some = f"{count} changed entries, such as" if count > 1 else "a changed entry,"
        what = f"no query names {some} {edit.missed[0]!r}"
        fix = WRITE_SLOTTED if task.slots else f"`pilocal synth {task.folder}` makes some"
        context.warn(f"{task.files['train']}: {what}; {fix}")
    if edit.stale:
        what = "a changed entry and the answer that there was before"
        rows = f"{edit.stale} rows have" if edit.stale > 1 else "a row has"
        fix = "correct it" if task.slots else f"`pilocal synth {task.folder}` makes it anew"
        context.warn(f"{task.files['train']}: {rows} {what}; if it is wrong now, {fix}")
    write_json(folder / "edit.json", edit.as_json(start, task.train))
    return [folder / "edit.json", *copy_adapter(start.folder / "adapter", folder)]


def _note(context: Context) -> str:
    """Return which entries have changed."""
    said = _read(context)
    texts = [f"changed: {' -> '.join(each)}" for each in said["changed"]]
    texts += [f"{kind}: {text}" for kind in ("added", "removed") for text in said[kind]]
    rest = [f"and {len(texts) - SHOWN} more in {context.run.edit / 'edit.json'}"] if len(texts) > SHOWN else []
    return "; ".join([*texts[:SHOWN], *rest, f"{len(said['touched'])} training rows touch them"])


EDIT = Step(name="edit", facts=_facts, make=_make, wanted=_wanted, note=_note)
