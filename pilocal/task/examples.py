"""The train, valid and test examples, read strictly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, PilocalError, raise_all
from pilocal.task.toml import read_text

LACKING = "the record has no"
"""The beginning of the message for a record that lacks a field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One solved task of the pool."""

    id: str
    query: str
    """The last user turn."""
    answer: str
    """What the model should answer."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (role, content) turns of a multi-turn record, oldest first."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the record, for the metric."""


def load_examples(path: Path, split: str = "train") -> tuple[Example, ...]:
    """Read a JSONL file of records; raises InputError or Faults, with line numbers."""
    faults: list[PilocalError] = []
    examples = read_split(path, split, faults)
    raise_all(faults)
    return examples


def read_split(path: Path, split: str, faults: list[PilocalError]) -> tuple[Example, ...]:
    """Read a JSONL file of records, adding every fault with its line number to `faults`."""
    try:
        text = read_text(path)
    except PilocalError as fault:
        faults.append(fault)
        return ()
    examples: list[Example] = []
    seen: dict[str, int] = {}
    before = len(faults)
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = _example(json.loads(line), f"{split}-{number}", f"{path}:{number}")
        except json.JSONDecodeError as error:
            fix = "write one JSON object per line"
            faults.append(InputError(f"{path}:{number}", f"broken JSON: {error.msg}", got=line, fix=fix))
            continue
        except PilocalError as fault:
            faults.append(fault)
            continue
        if example.id in seen:
            fix = "make the ids unique or leave them out"
            faults.append(
                InputError(
                    f"{path}:{number}", f"duplicate id, first on line {seen[example.id]}", got=example.id, fix=fix
                )
            )
        seen.setdefault(example.id, number)
        examples.append(example)
    faults[before:] = _together(faults[before:])
    return tuple(examples)


def _together(faults: Sequence[PilocalError]) -> list[PilocalError]:
    """Return the faults with those of records that lack the same field merged into one, at the first of them."""
    lacking = Counter(fault.problem for fault in faults if fault.problem.startswith(LACKING))
    told: list[PilocalError] = []
    for fault in faults:
        count = lacking.get(fault.problem, 1)
        if count > 1:
            what = f"{fault.problem}, and neither do {count - 1} after it"
            told.append(InputError(fault.where, what, got=fault.got, fix=fault.fix))
            lacking[fault.problem] = 0
        elif count:
            told.append(fault)
    return told


def _example(record: Any, default_id: str, where: str) -> Example:
    fix = 'a record is {"query": "...", "answer": "..."} or {"messages": [...]}'
    if not isinstance(record, dict):
        raise InputError(where, "not a JSON object", got=record, fix=fix)
    record = dict(record)
    identity = record.pop("id", default_id)
    if not isinstance(identity, str | int):
        raise InputError(where, "the id must be text or a number", got=identity, fix="correct it or leave it out")
    if "messages" in record:
        history = _turns(record.pop("messages"), where)
        if len(history) < 2 or [role for role, _ in history[-2:]] != ["user", "assistant"]:
            raise InputError(where, "messages must end with a user and an assistant turn", fix=fix)
        *earlier, (_, query), (_, answer) = history
    else:
        earlier = []
        for key in ("query", "answer"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise InputError(where, f"{LACKING} {key}", got=record.get(key), fix=fix)
        query, answer = record.pop("query"), record.pop("answer")
    return Example(id=str(identity), query=query, answer=answer, history=tuple(earlier), extra=record)


def _turns(messages: Any, where: str) -> list[tuple[str, str]]:
    fix = 'messages is [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]'
    if not isinstance(messages, list):
        raise InputError(where, "messages must be a list", got=messages, fix=fix)
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role == "system":
            raise InputError(where, "a system message inside a record", fix="its text belongs in the template")
        if role not in ("user", "assistant") or not isinstance(content, str) or not content.strip():
            raise InputError(where, "a message without role or content", got=message, fix=fix)
        turns.append((role, content))
    return turns


def find_leaks(splits: Mapping[str, Sequence[Example]], files: Mapping[str, Path], faults: list[PilocalError]) -> None:
    """Add a fault for each split that shares queries with an earlier one."""
    owner: dict[tuple[Any, ...], str] = {}
    for split in ("train", "valid", "test"):
        leaked = 0
        for example in splits[split]:
            key = (example.history, example.query.strip())
            if owner.setdefault(key, split) != split:
                leaked += 1
                first = f"{owner[key]}'s query {example.query!r}"
        if leaked:
            what = f"queries that also appear in an earlier split: {leaked}, the last being {first}"
            faults.append(
                InputError(files[split], what, fix="split by content, so that no query is both trained and tested")
            )
