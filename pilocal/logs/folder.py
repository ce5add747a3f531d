"""Writes the task folder: all of it, or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilocal.base.base import Base, find_base
from pilocal.base.recipe import SHOTS
from pilocal.errors import InputError
from pilocal.logs.exchange import OFFERED, TOO_LONG
from pilocal.logs.ledger import FILE, Ledger
from pilocal.logs.metric import AnswerStatistics
from pilocal.logs.sensitive import redacted, seen_in
from pilocal.logs.settings import Settings
from pilocal.logs.sorting import Kept, Sieve, Sorter, record_of, unwanted
from pilocal.logs.splits import SPLITS, TRAIN, VALID, split
from pilocal.logs.survey import Survey
from pilocal.progress import Progress, silent
from pilocal.task import STARTER
from pilocal.task.slots import KEY as SLOTS
from pilocal.task.synth_table import Synth
from pilocal.task.toml import read_text

TRIED = tuple(range(SHOTS, -1, -1))
"""Shots of the first stage that are tried, until the prompts fit the context."""

FIT = 0.98
"""The share of rows, of those that fit alone, that must fit with so many shots."""

OVERHEAD = 32
"""Tokens that a chat template adds to a turn and its answer, at most."""

FEW_ROWS = 100

ROOM = 256
"""Tokens that a query and its answer are taken to have before there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What task.toml says."""

    name: str
    model: str
    base: Base | None
    """The base, where it is here: it says how long rows may be."""
    metric: str | None = None
    """None lets the answers decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written."""

    counts: Mapping[str, int]
    """Records of each split."""
    metric: str
    why_metric: str
    settings: str
    """How it is trained, in a line."""
    said: Sequence[str]
    """What was left out, and what was seen."""
    left_out: int
    warnings: Sequence[str] = field(default=())


def from_prompt(folder: Path, prompt: Path, setup: Setup) -> Settings:
    """Write a task of a template alone, whose records `pilocal synth` makes, and return its settings.

    Raises InputError unless the file is text and the folder is empty or not there.
    """
    text = read_text(prompt).strip("\n")
    shots = SHOTS
    if setup.base is not None:
        room = _room(_counter(setup.base)(text), setup.base)
        shots = next((number for number in TRIED if room >= (number + 1) * ROOM), 0)
    rows = Synth().per_entry * sum(bool(line.strip()) for line in text.split("\n"))
    with _whole(folder) as made:
        _write(made / "template.md", text + "\n")
        return _write_settings(made, setup, metric=setup.metric or "exact_match", rows=rows, shots=shots, made=True)


def from_examples(folder: Path, name: str, template: str, records: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write a task for the starter of a template and the queries and answers of each split.

    Raises InputError unless the folder is empty or not there.
    """
    setup = Setup(name=name, model=STARTER, base=find_base(STARTER, Path()))
    with _whole(folder) as made:
        _write(made / "template.md", template)
        for split_name, pairs in records.items():
            lines = [json.dumps(record_of([("user", query)], answer, None)) + "\n" for query, answer in pairs]
            _write(made / f"{split_name}.jsonl", "".join(lines))
        _write_settings(made, setup, metric="exact_match", rows=len(records[TRAIN]), shots=SHOTS)


def from_logs(folder: Path, survey: Survey, sieve: Sieve, setup: Setup, progress: Progress = silent) -> Made:
    """Write a task of the rows of some logs that have one template.

    Raises InputError where too few rows are left, and unless the folder is empty or not there.
    """
    with _whole(folder) as made:
        spool = made / ".records.jsonl"
        with (made / FILE).open("w", encoding="utf-8") as listed:
            ledger = Ledger(listed)
            count = _counter(setup.base)
            with spool.open("w", encoding="utf-8") as file:
                sorter = Sorter(survey, sieve, ledger, file, count)
                sorter.sort(progress)
            found = _write_task(made, spool, sorter, setup, count)
        spool.unlink()
        return found


def _counter(base: Base | None) -> Callable[[str], int]:
    """Return what counts a text's tokens; where there is no base, nothing is too long."""
    if base is None:
        return lambda text: 0
    tokenizer = base.tokenizer
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _write_task(made: Path, spool: Path, sorter: Sorter, setup: Setup, count: Callable[[str], int]) -> Made:
    survey, sieve, ledger = sorter.survey, sorter.sieve, sorter.ledger
    template = survey.templates[sieve.template]
    clean = redacted if sieve.redact else str
    warnings = [*survey.warnings(sieve.template, variants=sieve.variants)]
    if seen := seen_in(template.words):
        warnings.append(f"the template holds {' and '.join(seen)}" + (", taken out" if sieve.redact else ""))
    why = unwanted(sorter.rows)
    shots = _leave_out_long(sorter.rows, why, count(template.text), setup.base)
    _list_rows(sorter, why)
    statistics = AnswerStatistics()
    counts = _write_splits(made, spool, _splits(sorter, why), statistics)
    counts[TRAIN] += _add_shots(made, [(clean(asked), clean(answer)) for asked, answer in template.shots], statistics)
    if counts[TRAIN] < FEW_ROWS:
        warnings.append(f"{counts[TRAIN]} training records; a few hundred are needed at least")
    metric, reason = (setup.metric, "") if setup.metric else statistics.metric()
    _write(made / "template.md", template.written(clean).strip("\n") + "\n")
    longest = max(map(count, statistics.longest), default=0)
    shots = min(shots, counts[TRAIN] - 1)
    settings = _write_settings(made, setup, metric=metric, rows=counts[TRAIN], shots=shots, longest=longest)
    return Made(
        counts=counts,
        metric=metric,
        why_metric=reason,
        settings=settings.said,
        said=ledger.said,
        left_out=ledger.left_out.total(),
        warnings=warnings,
    )


def _list_rows(sorter: Sorter, why: Mapping[int, tuple[str, str]]) -> None:
    """List the rows that are left out in the end, and what was seen in the others."""
    for number, row in enumerate(sorter.rows):
        if number in why:
            sorter.ledger.leave_out(row.where, *why[number])
            continue
        for remark in row.remarks:
            sorter.ledger.remark(row.where, remark, "taken out" if sorter.sieve.redact and remark != OFFERED else "")


def _leave_out_long(rows: Sequence[Kept], why: dict[int, tuple[str, str]], template: int, base: Base | None) -> int:
    """Add the rows that are too long to those that are left out; return how many shots the first stage may have."""
    shots, most = _lengths(rows, why, template, base)
    for number, row in enumerate(rows):
        if number not in why and row.tokens > most:
            why[number] = (TOO_LONG, f"{row.tokens} tokens, {most} fit beside the template and {shots} shots")
    return shots


def _lengths(rows: Sequence[Kept], why: Mapping[int, Any], template: int, base: Base | None) -> tuple[int, int]:
    """Return how many shots the first stage may have, and how long a row may be then, in tokens."""
    if base is None:
        return SHOTS, 1 << 62
    room = _room(template, base)
    lengths = [row.tokens for number, row in enumerate(rows) if number not in why and row.tokens <= room - OVERHEAD]
    for shots in TRIED:
        most = room // (shots + 1) - OVERHEAD
        if sum(length <= most for length in lengths) >= FIT * len(lengths):
            return shots, most
    return 0, room - OVERHEAD


def _room(template: int, base: Base) -> int:
    """Return the tokens that a context has beside a template; raises InputError where there are none."""
    room = base.context - template - OVERHEAD
    if room <= 0:
        what = f"the template has {template} tokens, and the context of {base.model} is {base.context}"
        raise InputError(base.path, what, fix="take a base of a longer context with --model")
    return room


def _splits(sorter: Sorter, why: Mapping[int, Any]) -> dict[int, str]:
    """Return the split of each row that is left.

    Raises InputError where there are too few of them.
    """
    template = sorter.survey.templates[sorter.sieve.template]
    left = [number for number in range(len(sorter.rows)) if number not in why]
    for asked, _ in template.shots:
        sorter.near.add(asked)
    groups = sorter.near.groups()
    trained = set(groups[len(sorter.rows) :])
    different = {groups[number] for number in left} - trained
    if len(different) < 3:
        said = ", ".join(f"{reason}: {count}" for reason, count in sorter.ledger.left_out.most_common(4))
        what = f"{len(left)} of {sorter.survey.rows} rows are left, of {len(different)} different queries"
        what += "; three are needed"
        fix = "give more logs" + (f"; left out are {said}" if said else "")
        raise InputError(sorter.survey.files[0], what, fix=fix)
    chosen = split([groups[number] for number in left], [sorter.rows[number].asked for number in left], trained)
    return dict(zip(left, chosen, strict=True))


def _write_splits(made: Path, spool: Path, splits: Mapping[int, str], statistics: AnswerStatistics) -> dict[str, int]:
    """Write the records of the spool into the files of their splits; return how many each has."""
    counts = dict.fromkeys(SPLITS, 0)
    files = {name: (made / f"{name}.jsonl").open("w", encoding="utf-8") for name in SPLITS}
    try:
        with spool.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                if name := splits.get(number):
                    files[name].write(line)
                    counts[name] += 1
                    statistics.add(_answer_of(json.loads(line)))
    finally:
        for each in files.values():
            each.close()
    return counts


def _answer_of(record: Mapping[str, Any]) -> str:
    return str(record["answer"] if "answer" in record else record["messages"][-1]["content"])


def _add_shots(made: Path, shots: Sequence[tuple[str, str]], statistics: AnswerStatistics) -> int:
    """Add the solved examples that recurred before the query to the training records, unless they are there.

    Their slots have the values of other records.
    """
    known, slots = set[str](), list[dict[str, str]]()
    for name in (TRAIN, VALID):
        with (made / f"{name}.jsonl").open(encoding="utf-8", newline="\n") as file:
            for record in map(json.loads, file):
                known |= {record.get("query", "").strip()} if name == TRAIN else set()
                slots += [record.get(SLOTS, {})] if len(slots) < len(shots) else []
    new = [
        (asked, answer) for asked, answer in shots if asked.strip() not in known and asked.strip() and answer.strip()
    ]
    with (made / f"{TRAIN}.jsonl").open("a", encoding="utf-8") as file:
        for number, (asked, answer) in enumerate(new, 1):
            record = record_of([("user", asked)], answer, None, slots[number % len(slots)])
            file.write(json.dumps({"id": f"shot-{number}"} | record) + "\n")
            statistics.add(answer)
    return len(new)


def _write_settings(folder: Path, setup: Setup, **known: Any) -> Settings:
    """Write task.toml and schedule.toml, and return what they say."""
    settings = Settings(name=setup.name, model=setup.model, base=setup.base, **known)
    _write(folder / "task.toml", settings.task_toml)
    _write(folder / "schedule.toml", settings.schedule_toml)
    return settings


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder is empty or not there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(folder, "already exists and is not empty", fix="choose a new folder")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside it to write into, whose files move into it once all are written; else nothing is there."""
    check_folder(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield made
        folder.mkdir(exist_ok=True)
        for path in made.iterdir():
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
