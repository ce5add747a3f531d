"""Going on from the adapter of a run whose template was another: what has changed, and which rows touch that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.compress.edits import Change, find_changes
from pilocal.compress.entries import Entry, Index, read_entries, read_names
from pilocal.errors import InputError, RunError
from pilocal.run_folder.adapter import WEIGHTS_FILE, read_adapter, read_start
from pilocal.run_folder.files import MISSHAPEN
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.hashes import fingerprint, sha256_file
from pilocal.run_folder.shipped import read_shipped
from pilocal.task import Example, Task
from pilocal.training.memory import read_sizes

ASSISTANT = "assistant"

WRITE_SLOTTED = "write some, with values for the slots"
"""What to do for rows of a task with slots, for which no synthesis makes up values."""

FEWER = 4
"""By default as many times fewer steps as the first training had."""


@dataclass(frozen=True, slots=True)
class Start:
    """A run to go on from, after its task's template was edited."""

    run: str | Path
    """Its folder."""
    steps: int | None = None
    """Optimizer steps; by default a quarter of [training] steps."""
    replay: float = 0.9
    """Share of the task's rows in every step that touch no changed entry, so that the rest is kept."""
    sha256: str | None = None
    """Fingerprint of what the run was trained on and ended with; found when the new run begins."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError("steps of an edit", "must be at least 1", got=self.steps)
        if not 0 <= self.replay < 1:
            raise InputError("replay of an edit", "must be at least 0 and below 1", got=self.replay)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run)

    def steps_of(self, task: Task) -> int:
        """Return the optimizer steps."""
        return self.steps or max(1, task.training.steps // FEWER)

    def replayed(self, task: Task) -> int:
        """Return how many rows of every step touch no changed entry, where there are such rows."""
        room = task.training.batch_size - task.training.mixed_rows
        return min(room - task.training.kinds, max(1, round(self.replay * room))) if self.replay else 0

    def as_json(self) -> dict[str, Any]:
        """Return what run.json keeps."""
        return asdict(self) | {"run": str(self.run)}


@dataclass(frozen=True, slots=True)
class Former:
    """What a run was trained on."""

    template: str
    examples: tuple[Example, ...]
    sha256: str
    """Of both, and of the adapter."""


@dataclass(frozen=True, slots=True)
class Edit:
    """What has changed since a run."""

    changes: Sequence[Change]
    touched: Sequence[int]
    """The training examples that touch it, by their numbers."""
    stale: int
    """How many of these name a changed entry and have the answer that they had before."""
    missed: Sequence[str]
    """The changed and added entries that queries could name and none does."""

    def as_json(self, start: Start, examples: Sequence[Example]) -> dict[str, Any]:
        """Return what edit.json says."""
        return {
            "from": str(start.run),
            **{kind: [_texts(each) for each in self.changes if each.kind == kind]
               for kind in ("changed", "added", "removed")},
            "touched": [examples[number].id for number in self.touched],
            "missed": list(self.missed),
        }  # fmt: skip


def _texts(change: Change) -> str | list[str]:
    texts = [entry.text for entry in (change.before, change.after) if entry is not None]
    return texts if len(texts) > 1 else texts[0]


def start_of(state: Mapping[str, Any], where: Path) -> Start | None:
    """Return what a run.json says about where the run came from; raises RunError when that is damaged."""
    kept = state.get("start")
    try:
        return Start(**kept) if kept else None
    except (*MISSHAPEN, InputError):
        raise RunError(where, "damaged: start", got=kept, fix="name the run to go on from again, with --from") from None


def read_former(run: Path) -> Former:
    """Return what a run was trained on, and what it ended with.

    Raises RunError when it was not run until its export, or was trained again since.
    """
    shipped, steps = read_shipped(run), RunDir(run).state["steps"]
    if steps.get("train", {}).get("finished", "") > steps.get("export", {}).get("finished", ""):
        fix = "run it until export, with the task that it was trained on"
        raise RunError(run, "trained again since its last export", fix=fix)
    weights = run / "adapter" / WEIGHTS_FILE
    if not weights.is_file():
        raise RunError(run, "its adapter is gone", got=str(weights), fix="run it again, or go on from another run")
    examples = shipped.examples()
    pairs = [[example.history, example.asked, example.answer] for example in examples]
    return Former(shipped.template, examples, fingerprint(sha256_file(weights), shipped.template, pairs))


def check_start(task: Task, base: Base, start: Start) -> None:
    """Raise InputError when a run's adapter does not fit the task, or no row is left to be replayed."""
    folder = start.folder / "adapter"
    read_start(folder, task.lora, base.sha256)
    config, sizes = read_adapter(folder).config, read_sizes(base.config, task.lora)
    every = {name for block in sizes.blocks[-sizes.adapted :] for name in block}
    pairs = (
        ("layers", config.layers if config.layers > 0 else sizes.layers, sizes.adapted),
        ("linears", sorted(config.linears or every), sorted(task.lora.linears or every)),
    )
    for name, found, asked in pairs:
        if found != asked:
            fix = f"set [lora] {name} to the run's, or go on from another run"
            raise InputError(folder, f"the run's {name} are not the task's {asked}", got=found, fix=fix)
    if start.replay and task.training.batch_size - task.training.mixed_rows <= task.training.kinds:
        what, fix = "a step has no room for a row to replay", "raise it, or take --replay 0"
        raise InputError(f"{task.files['task']} [training] batch_size", what, got=task.training.batch_size, fix=fix)


@dataclass(frozen=True, slots=True)
class _Side:
    """What has changed in one of two versions of a template."""

    entries: Sequence[Entry]
    """All that stands there."""
    index: Index
    numbers: frozenset[int]
    """The entries that differ."""

    @classmethod
    def of(cls, template: str, entries: Sequence[Entry | None], queries: Sequence[str]) -> _Side:
        """Find what queries call the entries; `entries` are those that differ, None where the other version has one."""
        everything = read_entries(template)
        index = Index(read_names(everything, queries))
        return cls(everything, index, frozenset(entry.number for entry in entries if entry))

    @property
    def is_named(self) -> bool:
        """Whether queries can name all that differs."""
        return self.numbers <= self.index.names.keys()

    def texts(self, numbers: set[int]) -> list[str]:
        """Return the texts of entries."""
        return [entry.text for entry in self.entries if entry.number in numbers]

    def hits(self, example: Example) -> frozenset[int]:
        """Return the entries that differ and that an example asks for."""
        return self.numbers.intersection(self.index.entries_of(*example.learned_queries))


def find_edit(task: Task, former: Former) -> Edit:
    """Return what has changed in the template since a run, and the training examples that touch it.

    An example touches it if its query names an entry that was changed, added or removed, or if it was trained on with
    another answer. Where an entry that changed cannot be named, such as a rule, every new query may touch it.
    """
    changes = find_changes(former.template, task.template)
    queries = [query for example in (*task.train, *former.examples) for query in example.learned_queries]
    before = _Side.of(former.template, [change.before for change in changes], queries)
    after = _Side.of(task.template, [change.after for change in changes], queries)
    every_new = not (before.is_named and after.is_named)
    known = {_asked(example): _said(example) for example in former.examples}
    touched, stale, missed = list[int](), 0, set(after.numbers.intersection(after.index.names))
    for number, example in enumerate(task.train):
        said = known.get(_asked(example))
        old, new = before.hits(example), after.hits(example)
        missed -= new
        stale += bool(old) and said == _said(example)
        relabelled = every_new if said is None else said != _said(example)
        if old | new or relabelled:
            touched.append(number)
    return Edit(changes, touched, stale, after.texts(missed))


def _asked(example: Example) -> tuple[str, ...]:
    """Return what is said to the assistant in a conversation."""
    return (*(text for role, text in example.history if role != ASSISTANT), example.asked)


def _said(example: Example) -> tuple[str, ...]:
    """Return what the assistant says."""
    return (*(text for role, text in example.history if role == ASSISTANT), example.answer)


def begin(task: Task, start: Start) -> tuple[Start, Edit]:
    """Return a start with what its run was, and what has changed since.

    Raises RunError for a run that cannot be gone on from, InputError when no training example touches the change.
    """
    former = read_former(start.folder)
    edit = find_edit(task, former)
    if edit.changes and not edit.touched:
        got = f"{len(edit.changes)} entries, such as {edit.changes[0]}"
        fix = WRITE_SLOTTED if task.slots else f"`pilocal synth {task.folder}` makes some, or write some"
        raise InputError(task.files["train"], "no training row touches what has changed", got=got, fix=fix)
    return replace(start, run=start.folder.resolve(), sha256=former.sha256), edit
