"""The train, valid and test examples, read strictly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pilocal.errors import InputError, PilocalError, raise_all
from pilocal.task.chat import Turn, read_messages, read_text_of, refuse_tools
from pilocal.task.faults import merged
from pilocal.task.formats import foreign_file, foreign_record
from pilocal.task.json_lines import Line, read_json
from pilocal.task.slots import KEY as SLOTS
from pilocal.task.slots import read_slots, stated
from pilocal.task.text import uncollected
from pilocal.task.toml import read_text

T = TypeVar("T")

QUERY_FORM = 'a record is {"query": "..."}'

UNRELATED_FORM = 'a record is {"query": "..."}, with "answer" and "accepts": ["...", "..."] if you like'

FORM = 'a record is {"query": "...", "answer": "..."} or {"messages": [...]}'


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
    unlearned: tuple[int, ...] = ()
    """The numbers of the assistant's turns in the history that are not learned."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """The values of the template's slots, by name, in its order."""
    line: int = field(default=0, compare=False)
    """The line of its file; 0 where it comes from none."""

    @property
    def asked(self) -> str:
        """The query with the values of the slots before it, which together decide the answer."""
        return stated(self.slots) + self.query

    @property
    def learned(self) -> tuple[int, ...]:
        """The numbers of the earlier turns that are learned as the answer is: the assistant's."""
        return tuple(number for number in self.spoken if number not in self.unlearned)

    @property
    def spoken(self) -> tuple[int, ...]:
        """The numbers of all earlier turns of the assistant."""
        return tuple(number for number, (role, _) in enumerate(self.history) if role == "assistant")

    @property
    def learned_queries(self) -> tuple[str, ...]:
        """What the answers that are learned are answers to, the last turn last."""
        return (*(self.history[number - 1][1] for number in self.learned), self.query)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything, as JSON."""
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        del known["line"]  # where it stands changes nothing
        del known["unlearned"]  # an example of one turn is told as ever, so that old runs go on
        if not self.slots:
            del known["slots"]
        return known | ({"learned": self.learned} if self.history else {})


@dataclass(slots=True)
class Split:
    """What is read of a file of records."""

    path: Path
    slots: Sequence[str] | None = None
    """The names of the template's slots, all of which a record needs; None where the template is not known."""
    examples: list[Example] = field(default_factory=list)
    faults: list[PilocalError] = field(default_factory=list)
    left_out: list[Line] = field(default_factory=list)
    """The records whose answers all have weight 0."""

    @property
    def warning(self) -> str | None:
        """What is said about records that were left out; None if there are none."""
        if not self.left_out:
            return None
        count = len(self.left_out)
        records = f"{count} records are left out, the first on line" if count > 1 else "a record is left out, on line"
        why = 'every answer has "weight": 0 and is not learned'
        return f"{self.path}: {records} {self.left_out[0].number}: {why}"


def load_examples(path: Path, split: str = "train") -> tuple[Example, ...]:
    """Read a JSONL file of records; raises InputError or Faults, with line numbers."""
    read = read_split(path, split)
    raise_all(read.faults)
    return tuple(read.examples)


def load_queries(path: Path) -> tuple[str, ...]:
    """Read a JSONL file of queries without answers, {"query": "..."} each.

    Raises InputError or Faults, with line numbers.
    """
    return tuple(_load_each(path, lambda record, where: _query(record, where, QUERY_FORM)))


@dataclass(frozen=True, slots=True)
class OwnQuery:
    """A query without an answer."""

    query: str
    entry: str | None
    """What it asks for, as the template has it; None where it does not say."""
    where: Line


def load_own_queries(path: Path) -> tuple[OwnQuery, ...]:
    """Read a JSONL file of queries without answers, {"query": "...", "entry": "..."} each; `entry` may be left out.

    Raises InputError or Faults, with line numbers.
    """
    return tuple(_load_each(path, _own_query))


def _own_query(record: Any, where: Line) -> OwnQuery:
    query = _query(record, where, QUERY_FORM)
    entry = record.get("entry")
    if entry is not None and (not isinstance(entry, str) or not entry.strip()):
        raise InputError(where, "entry must be the text of an entry", got=entry, fix="write it as the template has it")
    return OwnQuery(query, entry, where)


def load_unrelated(path: Path) -> tuple[Example, ...]:
    """Read a JSONL file of queries, each with an answer and other forms of it (`accepts`) or an empty one.

    Raises InputError or Faults, with line numbers.
    """
    return tuple(_load_each(path, _unrelated))


def _load_each(path: Path, read: Callable[[Any, Line], T]) -> list[T]:
    """Return what `read` makes of every record; raises InputError or Faults, with line numbers."""
    found, faults = list[T](), list[PilocalError]()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = Line(path, number)
            try:
                found.append(read(read_json(line, where), where))
            except PilocalError as fault:
                faults.append(fault)
    raise_all(merged(faults))
    return found


def _query(record: Any, where: Line, form: str) -> str:
    if not isinstance(record, dict) or "query" not in record:
        raise InputError(where, "the record has no query", got=record, fix=form)
    return read_text_of("query", record["query"], where, form)


def _unrelated(record: Any, where: Line) -> Example:
    query = _query(record, where, UNRELATED_FORM)
    given, accepts = record.get("answer"), record.get("accepts")
    answer = "" if given is None else read_text_of("answer", given, where, UNRELATED_FORM)
    if accepts is not None and (not answer or not isinstance(accepts, list)):
        what = "accepts is a list of texts beside an answer"
        raise InputError(where, what, got=accepts, fix=UNRELATED_FORM)
    forms = [read_text_of("form in accepts", form, where, UNRELATED_FORM) for form in accepts or ()]
    for form in (answer, *forms) if answer else ():
        if not re.search(r"\w", form):
            what = "every answer would hold this one"
            raise InputError(where, what, got=form, fix="write words or numbers")
    return Example(id=f"unrelated-{where.number}", query=query, answer=answer, extra={"accepts": forms})


def read_split(path: Path, split: str, slots: Sequence[str] | None = None) -> Split:
    """Read a JSONL file of records with all its faults, each with its line number, those of one kind together.

    `slots` are the names of the template's; None takes any.
    """
    read = Split(path, slots)
    try:
        text = read_text(path)
    except PilocalError as fault:
        read.faults.append(fault)
        return read
    if foreign := foreign_file(path, text):
        read.faults.append(foreign)
        return read
    seen: dict[str, int] = {}
    with uncollected():
        # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    _take(line, Line(path, number), f"{split}-{number}", seen, read)
                except PilocalError as fault:
                    read.faults.append(fault)
    if read.left_out and not read.examples and not read.faults:
        fix = 'give some of them "weight": 1'
        read.faults.append(InputError(path, 'every answer of every record has "weight": 0', fix=fix))
    read.faults = merged(read.faults)
    return read


def _take(line: str, where: Line, default_id: str, seen: dict[str, int], read: Split) -> None:
    """Add the example on a line, or that it is left out; raises InputError."""
    example = _example(read_json(line, where), default_id, where, read.slots)
    if example is None:
        read.left_out.append(where)
        return
    first = seen.setdefault(example.id, where.number)
    if first != where.number:
        fix = "make the ids unique or leave them out"
        raise InputError(where, f"duplicate id, first on line {first}", got=example.id, fix=fix)
    read.examples.append(example)


def _example(record: Any, default_id: str, where: Line, names: Sequence[str] | None) -> Example | None:
    """Return the example, or None where no answer of it is to be learned."""
    if not isinstance(record, dict):
        raise InputError(where, "not a JSON object", got=record, fix=FORM)
    if foreign := foreign_record(record, where):
        raise foreign
    record = dict(record)
    identity = record.pop("id", default_id)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise InputError(where, "the id must be text or a number", got=identity, fix="correct it or leave it out")
    turns, unlearned = _turns(record, where)
    slots = read_slots(record.pop(SLOTS, None), names, where)
    if not turns:
        return None
    for key in ("messages", "query", "answer"):
        record.pop(key, None)
    *earlier, (_, query), (_, answer) = turns
    known: dict[str, Any] = {"history": tuple(earlier), "extra": record, "unlearned": unlearned, "slots": slots}
    known["line"] = where.number
    return Example(id=str(identity), query=query, answer=answer, **known)


def _turns(record: Mapping[str, Any], where: Line) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
    """Return the turns of a record as `read_messages` does."""
    if record.get("messages") is None:  # tables that were joined have null where a record has no such field
        for key in ("query", "answer"):
            if key not in record:
                raise InputError(where, f"the record has no {key}", got=record, fix=FORM)
        query, answer = (read_text_of(key, record[key], where, FORM) for key in ("query", "answer"))
        return (("user", query), ("assistant", answer)), ()
    if beside := [key for key in ("query", "answer") if record.get(key) is not None]:
        what = f"messages and {beside[0]} in one record: which of them counts is not clear"
        raise InputError(where, what, fix="leave one of them out")
    refuse_tools(record, where)
    return read_messages(record["messages"], where)


def find_leaks(splits: Mapping[str, Sequence[Example]], files: Mapping[str, Path], faults: list[PilocalError]) -> None:
    """Add a fault for each split that shares queries with an earlier one, and how many have another answer there."""
    owner: dict[tuple[Any, ...], tuple[str, set[str]]] = {}
    for split in ("train", "valid", "test"):
        leaked = unlike = line = 0
        for example in splits[split]:
            key = (example.history, example.query.strip(), *example.slots.items())
            first, answers = owner.setdefault(key, (split, set()))
            if first == split:
                answers.add(example.answer.strip())
                continue
            leaked += 1
            unlike += example.answer.strip() not in answers
            line, last = example.line, f"{first}'s query {example.query!r}"
        if leaked:
            what = f"queries that also appear in an earlier split: {leaked}, the last being {last}"
            what += f"; {unlike} of them with another answer there" if unlike else ""
            fix = "split by content, so that no query is both trained and tested"
            faults.append(InputError(Line(files[split], line), what, fix=fix))
