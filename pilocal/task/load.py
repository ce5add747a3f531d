"""A task folder: task.toml, the template and the examples, read strictly and checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError, did_you_mean, raise_all
from pilocal.task.examples import Example, find_leaks, read_split
from pilocal.task.tables import (
    METRICS,
    STARTER,
    TABLES,
    Compression,
    Export,
    Generation,
    Lora,
    Retrieval,
    Scoring,
    Training,
)
from pilocal.task.toml import build, line_of, read_text, read_toml, require


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    """The keys of task.toml outside any table."""

    name: str
    """The task's name; clients of the server send it as `model`."""
    model: str = STARTER
    """The base: "starter" (bundled), a local directory, or a Hub id."""
    template: str = "template.md"
    """File of the text that every request repeats; like all files here, relative to the task folder."""
    train: str = "train.jsonl"
    """File of the training examples, one JSON object per line."""
    valid: str = "valid.jsonl"
    """File of the validation examples, for the validation loss and the gate."""
    test: str = "test.jsonl"
    """File of the test examples, for the scores."""
    metric: str = "exact_match"
    """How an answer is scored; see the table below."""

    def __post_init__(self) -> None:
        require(
            (bool(self.name.strip()), "name", "must not be empty"),
            (bool(self.model.strip()), "model", "must not be empty"),
            (self.metric in METRICS, "metric", f"must be one of {', '.join(METRICS)}"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A whole task, checked."""

    folder: Path
    """Where it was read from."""
    name: str
    model: str
    """The base, as task.toml names it."""
    template: str
    """The template's text."""
    train: tuple[Example, ...]
    """Each with id, query, answer, history and extra; the same for the next two."""
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    metric: str
    retrieval: Retrieval
    """The table of that name, as are all below."""
    compression: Compression
    lora: Lora
    training: Training
    generation: Generation
    export: Export
    scoring: Scoring
    files: Mapping[str, Path]
    """Every file that was read: task, template, train, valid, test, and the metric's database if it has one."""


def task_folder(task: str | Path) -> Path:
    """Return the folder of a task, which may be named by its task.toml."""
    return Path(task).parent if Path(task).is_file() else Path(task)


def load_task(task: str | Path) -> Task:
    """Read and check a task folder (or its task.toml).

    Raises InputError for a single fault, or Faults with every fault of every file.
    """
    folder = task_folder(task)
    toml_path = Path(task) if Path(task).is_file() else folder / "task.toml"
    if not toml_path.is_file():
        raise InputError(toml_path, "no such task", fix="`pilocal init DIR` makes one")
    values, text = read_toml(toml_path)
    faults: list[PilocalError] = []
    tables: dict[str, Any] = {}
    asked = set(values["scoring"]) if isinstance(values.get("scoring"), dict) else set[str]()
    for name, cls in TABLES.items():
        table = values.pop(name, {})
        if not isinstance(table, dict):
            line = line_of(text, name)
            faults.append(
                InputError(f"{toml_path}:{line}", f"{name} must be a table", got=table, fix=f"write [{name}]")
            )
            continue
        tables[name] = build(cls, table, faults, toml_path, text, name)
    names = {"name", "model", "template", "train", "valid", "test", "metric"}
    for key in [key for key, value in values.items() if isinstance(value, dict) and key not in names]:
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"[{key}")), 1)
        faults.append(InputError(f"{toml_path}:{line}", f"unknown table [{key}]", fix=did_you_mean(key, TABLES)))
        del values[key]
    top = build(_Top, values, faults, toml_path, text)
    if top is None:
        raise_all(faults)
    assert top is not None
    scoring = tables.get("scoring") or Scoring()
    for name in asked & {key.name for key in fields(Scoring)} - set(METRICS[top.metric]):
        where = f"{toml_path}:{line_of(text, name, 'scoring')}"
        fix = f"it reads {', '.join(METRICS[top.metric]) or 'none'}; remove the key"
        faults.append(InputError(where, f"the metric {top.metric} does not read [scoring] {name}", fix=fix))
    files = {"task": toml_path, "template": folder / top.template}
    if scoring.database is not None:
        files["database"] = folder / scoring.database
    template = ""
    try:
        template = read_text(files["template"])
    except PilocalError as fault:
        faults.append(fault)
    splits: dict[str, tuple[Example, ...]] = {}
    for split, name in (("train", top.train), ("valid", top.valid), ("test", top.test)):
        files[split] = folder / name
        splits[split] = read_split(files[split], split, faults)
    find_leaks(splits, files, faults)
    raise_all(faults)
    return Task(
        folder=folder,
        name=top.name,
        model=top.model,
        template=template.strip("\n"),
        metric=top.metric,
        files=files,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        retrieval=tables["retrieval"],
        compression=tables["compression"],
        lora=tables["lora"],
        training=tables["training"],
        generation=tables["generation"],
        export=tables["export"],
        scoring=tables["scoring"],
    )
