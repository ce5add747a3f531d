"""A task folder: task.toml, the template and the examples, read strictly and checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError, did_you_mean, raise_all
from pilocal.task.examples import Example, Split, find_leaks, load_unrelated, read_split
from pilocal.task.export_table import Export
from pilocal.task.placeholders import placeholder_warning
from pilocal.task.serving_table import Serving
from pilocal.task.slots import read_template
from pilocal.task.synth_table import Synth
from pilocal.task.tables import (
    METRICS,
    STARTER,
    TABLES,
    Compression,
    Evaluation,
    Generation,
    Lora,
    Retrieval,
    Scoring,
    Training,
)
from pilocal.task.text import absent, from_home, holds, meant, path_of, uncollected
from pilocal.task.toml import build, line_of, one_of, read_text, read_toml, require

PATHS: Mapping[str, tuple[str, ...]] = {
    "": ("model", "chat_template", "schedule", "template", "train", "valid", "test"),
    "retrieval": ("embedding_model",),
    "compression": ("ladder", "checkpoint"),
    "training": ("mix_queries",),
    "evaluation": ("unrelated",),
    "serving": ("json_schema", "grammar"),
    "scoring": ("database",),
    "synth": ("labelled", "queries"),
}
"""The keys of each table, and of none, that may name a path; the program of [scoring] command is one, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    """The keys of task.toml outside any table."""

    name: str
    """The task's name; clients of the server send it as `model`."""
    model: str = STARTER
    """The base: "starter" (bundled), a local directory, a GGUF file, "ollama:NAME", or a Hub id.
    owner/name@REVISION stays with one commit, tag or branch."""
    chat_template: str | None = None
    """File of a chat template, in Jinja, in the place of the base's own: for training, export and serving alike."""
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
    schedule: str | None = None
    """Schedule file of runs without --schedule. By default linear, 4 stages, 5 shots."""

    def __post_init__(self) -> None:
        require(
            (bool(self.name.strip()), "name", "must not be empty"),
            (bool(self.model.strip()), "model", "must not be empty"),
            (self.chat_template is None or bool(self.chat_template.strip()), "chat_template", "must not be empty"),
            one_of(self.metric, "metric", METRICS),
            (self.schedule is None or bool(self.schedule.strip()), "schedule", "must not be empty"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A whole task, checked."""

    folder: Path
    """Where it was read from."""
    name: str
    model: str
    """The base, as task.toml names it."""
    chat_template: str | None
    """The text of a chat template in the place of the base's own."""
    answer_form: str | None
    """The text of [serving] json_schema, or grammar."""
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
    evaluation: Evaluation
    scoring: Scoring
    serving: Serving
    synth: Synth
    files: Mapping[str, Path]
    """Every file that belongs to it: task, template, train, valid, test, and if it has them schedule, database,
    chat_template, unrelated, json_schema and grammar."""
    slots: tuple[str, ...] = ()
    """The names of the template's slots, in its order."""
    unrelated: tuple[Example, ...] = ()
    """The user's own unrelated prompts, the answer empty where there is none."""
    warnings: tuple[str, ...] = ()
    """What is odd about these files and yet no fault, one line each."""


def task_folder(task: str | Path) -> Path:
    """Return the folder of a task, which may be named by its task.toml."""
    return Path(task).parent if holds(Path(task).is_file) else Path(task)


def load_task(task: str | Path, *, data: bool = True) -> Task:
    """Read and check a task folder (or its task.toml); without `data` no file of examples is read.

    Raises InputError for a single fault, or Faults with every fault of every file.
    """
    task = path_of(task)
    folder = task_folder(task)
    path = task if holds(task.is_file) else folder / "task.toml"
    if not holds(path.is_file):
        near = meant(task)
        fix = f"did you mean {near}?" if near else "`pilocal init DIR` makes one"
        raise InputError(path, absent(path, "no such task"), fix=fix)
    values, text = read_toml(path)
    faults: list[PilocalError] = []
    _from_home(values)
    tables, asked = _read_tables(values, text, path, faults)
    top = build(_Top, values, faults, path, text)
    if top is None:
        raise_all(faults)
    assert top is not None
    for name in asked - set(METRICS[top.metric]):
        where = f"{path}:{line_of(text, name, 'scoring')}"
        fix = f"it reads {', '.join(METRICS[top.metric]) or 'none'}; remove the key"
        faults.append(InputError(where, f"the metric {top.metric} does not read [scoring] {name}", fix=fix))
    files = {"task": path, "template": folder / top.template}
    files |= {name: folder / file for name, file in _named_files(top, tables).items() if file is not None}
    files |= {"train": folder / top.train, "valid": folder / top.valid, "test": folder / top.test}
    contents, warnings = _read_contents(files, faults, data)
    raise_all(faults)
    return Task(
        folder=folder,
        name=top.name,
        model=top.model,
        metric=top.metric,
        files=files,
        warnings=warnings,
        **contents,
        **tables,
    )


def _named_files(top: _Top, tables: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the files that a task may name beside its template and examples; a table with faults names none."""
    serving = tables.get("serving") or Serving()
    return {
        "database": (tables.get("scoring") or Scoring()).database,
        "chat_template": top.chat_template,
        "schedule": top.schedule,
        "mix_queries": (tables.get("training") or Training()).mix_queries,
        "unrelated": (tables.get("evaluation") or Evaluation()).unrelated,
        "json_schema": serving.json_schema,
        "grammar": serving.grammar,
    }


def _from_home(values: dict[str, Any]) -> None:
    """Replace the `~` at the beginning of every path in the values of task.toml."""
    for table, keys in PATHS.items():
        found = values.get(table, {}) if table else values
        for key in keys if isinstance(found, dict) else ():
            if isinstance(found.get(key), str):
                found[key] = from_home(found[key])
    scoring = values.get("scoring")
    command = scoring.get("command") if isinstance(scoring, dict) else None
    if isinstance(command, list) and command and isinstance(command[0], str):
        command[0] = from_home(command[0])


def _read_tables(
    values: dict[str, Any], text: str, path: Path, faults: list[PilocalError]
) -> tuple[dict[str, Any], set[str]]:
    """Take the tables out of the values; return those without faults, and which keys of [scoring] are set."""
    scoring = values.get("scoring")
    asked = {key.name for key in fields(Scoring)}.intersection(scoring if isinstance(scoring, dict) else ())
    tables: dict[str, Any] = {}
    for name, cls in TABLES.items():
        table = values.pop(name, {})
        if isinstance(table, dict):
            tables[name] = build(cls, table, faults, path, text, name)
        else:
            where = f"{path}:{line_of(text, name)}"
            faults.append(InputError(where, f"{name} must be a table", got=table, fix=f"write [{name}]"))
    names = {field.name for field in fields(_Top)}
    for key in [key for key, value in values.items() if isinstance(value, dict) and key not in names]:
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"[{key}")), 1)
        faults.append(InputError(f"{path}:{line}", f"unknown table [{key}]", fix=did_you_mean(key, TABLES)))
        del values[key]
    return tables, asked


def _read_contents(
    files: Mapping[str, Path], faults: list[PilocalError], data: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return both templates and the examples of every split, and what is odd about them."""
    contents: dict[str, Any] = {"template": "", "chat_template": None, "answer_form": None}
    slots: tuple[str, ...] | None = None
    warnings: list[str | None] = []
    try:
        template = read_text(files["template"])
        template, slots = read_template(template, files["template"])
        contents |= {"template": template.strip("\n"), "slots": slots}
        warnings.append(placeholder_warning(template, files["template"]))
    except PilocalError as fault:
        faults.append(fault)
    texts = {"chat_template": "chat_template", "json_schema": "answer_form", "grammar": "answer_form"}
    for name in texts.keys() & files.keys():
        try:
            contents[texts[name]] = read_text(files[name])
        except PilocalError as fault:
            faults.append(fault)
    if "unrelated" in files and data:
        try:
            contents["unrelated"] = load_unrelated(files["unrelated"])
        except PilocalError as fault:
            faults += getattr(fault, "faults", [fault])
    for split in ("train", "valid", "test"):
        read = read_split(files[split], split, slots) if data else Split(files[split])
        contents[split] = tuple(read.examples)
        faults += read.faults
        warnings.append(read.warning)
    with uncollected():
        find_leaks(contents, files, faults)
    return contents, tuple(warning for warning in warnings if warning)
