"""A synthesis from a task folder to its files: TASK/synth/{train,valid,test}.jsonl and report.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pilocal
from pilocal.base.base import Base, find_base
from pilocal.base.device import on_cpu
from pilocal.errors import InputError
from pilocal.evaluate.asking import Asker
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.setups import base_for
from pilocal.prompt.tokens import end_tokens
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.run_folder.files import replacing, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.synth.conversation import converse, environment_prompt
from pilocal.synth.endpoint import Endpoint
from pilocal.synth.generator import Sieve, Write, generate
from pilocal.synth.queries import SPLITS, TEST, TRAIN, VALID, Asked, Coverage, cover
from pilocal.synth.reasons import Reasoned, Reasoner, reasons_report, with_reasons
from pilocal.synth.records import Labelled, Records, Remembered
from pilocal.synth.teacher import CHUNK, Teacher
from pilocal.task import Example, Generation, Task, load_task
from pilocal.task.examples import load_examples, load_queries
from pilocal.task.text import path_of

FOLDER = "synth"
"""Below the task folder."""

GENERATED_FILE = "generated.json"
"""Every text of a generator."""

GENERATED_TOKENS = 256
"""The longest that a generator may write at once."""

RECORDS = "records.jsonl"
"""Every answer, those that are dropped, too."""

REASONS = "reasons.jsonl"
"""What the base says of each record without the template, what with it, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What there is already."""

    solved: tuple[Example, ...]
    own: tuple[str, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]


def synthesize(task: str | Path, *, listeners: Listeners = QUIET) -> dict[str, Any]:
    """Make training data of a task's template and return what report.json says; called again, it resumes.

    The examples that there are come first in each file, then new queries, answered by the base with the whole template.
    Raises InputError or Faults for the task, ModelError for the base, RunError if the disk is full.
    """
    read = load_task(path_of(task), data=False)
    folder = read.folder / FOLDER
    given, base = _read_given(read, folder), base_for(read)
    coverage = _cover(read, given)
    if read.synth.generator:
        _generate(read, base, given, coverage, folder, listeners)
    if not coverage.asked:
        got = f"{len(coverage.nameable)} of {len(coverage.entries)} entries"
        what = "every entry that queries name has enough of them" if coverage.nameable else "no query names an entry"
        raise InputError(read.files["template"], what, got=got, fix=_advice(coverage))
    answered = _answer(read, base, coverage, _example_of(given), folder, listeners)
    _check(folder, given, answered)
    records, report = _records(given, answered), _report(read, coverage, answered)
    if read.synth.reasons:
        wanted = [record for split in (TRAIN, VALID) for record in records[split]]
        found = _reasons(read, base, wanted, folder, listeners)
        reasoned = iter(map(with_reasons, wanted, found))
        records |= {split: list(islice(reasoned, len(records[split]))) for split in (TRAIN, VALID)}
        report["reasons"] = reasons_report(found)
    _write(folder, records)
    write_json(folder / "report.json", report)
    return report


def _read_given(task: Task, folder: Path) -> _Given:
    """Return the examples and queries that are not of a synthesis; their files need not exist."""

    def read(split: str) -> tuple[Example, ...]:
        path = task.files[split]
        return load_examples(path, split) if path.parent != folder and path.exists() else ()

    labelled = task.folder / (task.synth.labelled or "train.jsonl")
    asked_for = task.synth.labelled is not None or task.files[TRAIN].parent == folder
    solved = load_examples(labelled) if asked_for and labelled.exists() else read(TRAIN)
    own = task.folder / task.synth.queries
    return _Given(
        solved=solved,
        own=load_queries(own) if own.exists() else (),
        valid=read(VALID),
        test=read(TEST),
    )


def _cover(task: Task, given: _Given) -> Coverage:
    held_out = {VALID: [example.query for example in given.valid]}
    if not given.test:
        held_out[TEST] = []
    return cover(
        task.template,
        [example.query for example in given.solved],
        given.own,
        [example.query for example in (*given.valid, *given.test)],
        per_entry=task.synth.per_entry,
        seed=task.synth.seed,
        held_out=held_out,
    )


def _generate(task: Task, base: Base, given: _Given, coverage: Coverage, folder: Path, listeners: Listeners) -> None:
    """Have queries written for the entries that still have too few."""
    held_out = [VALID] if given.test else [VALID, TEST]
    wanted = coverage.lacking(task.synth.per_entry, held_out)
    like = [*(example.query for example in given.solved), *given.own]
    write = _writer(task, base, folder / GENERATED_FILE, listeners)
    made: dict[int, list[str]] = {}
    total = sum(lacks for _, lacks in wanted)
    for entry, query in generate(task.template, wanted, like, write, Sieve(coverage.taken, NgramVectors(like))):
        made.setdefault(entry.number, []).append(query)
        listeners.progress("queries", sum(map(len, made.values())), total)
    for entry, _ in wanted:
        coverage.add(entry, made.get(entry.number, ()), task.synth.per_entry, held_out)
    if wanted and not made:
        fix = "look at what it wrote, and take another generator"
        raise InputError("[synth] generator", "nothing that it writes is a query", got=folder / GENERATED_FILE, fix=fix)


def _writer(task: Task, base: Base, path: Path, listeners: Listeners) -> Write:
    """Return who writes queries and remembers in a file what it wrote."""
    settings = task.synth
    name = settings.generator or ""
    if settings.is_endpoint:
        endpoint = Endpoint(name, settings.generator_model, settings.budget)
        return Remembered(endpoint, path, fingerprint(name, settings.generator_model), 1)  # each may cost money
    model = base if name == "base" else find_base(name, task.folder)
    asker = Asker(
        base=model,
        ends=end_tokens(model.tokenizer),
        generation=Generation(max_tokens=GENERATED_TOKENS, batch_size=task.generation.batch_size),
        progress=listeners.progress,
    )
    teacher = Teacher(asker, "", model.gguf if on_cpu() else None, "generator")
    return Remembered(teacher.answer, path, fingerprint(model.sha256), task.generation.batch_size)


def _answer(
    task: Task, base: Base, coverage: Coverage, example: Example | None, folder: Path, listeners: Listeners
) -> list[tuple[Asked, Labelled]]:
    """Return every query with its answer, those of an interrupted synthesis included.

    `example` shows whoever plays the user what a conversation is like.
    """
    asked = coverage.asked
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), generation=task.generation, progress=listeners.progress)
    teacher = Teacher(asker, task.template, base.gguf if on_cpu() else None)
    key = _key(task, base, [*map(asdict, asked)], *_talking(task, example))
    records = Records(folder / RECORDS, key, Labelled)
    for begin in records.missing(len(asked), CHUNK):
        chunk = asked[begin : begin + CHUNK]
        answers = teacher.answer([one.query for one in chunk])
        found = [
            Labelled(query=one.query, answer=answer, dropped=teacher.objection(answer))
            for one, answer in zip(chunk, answers, strict=True)
        ]
        if task.synth.turns > 1:
            found = _talk(task, base, teacher, found, example)
        records.add(found)
        listeners.progress("synth", begin + len(chunk), len(asked))
    return list(zip(asked, records.done, strict=True))


def _key(task: Task, base: Base, *more: Any) -> str:
    """Return what decides what the base says."""
    return fingerprint(pilocal.__version__, base.sha256, task.template, asdict(task.generation), *more)


def _talking(task: Task, example: Example | None) -> list[Any]:
    """Return what decides conversations beside their queries; nothing where there are none."""
    return [task.synth.turns, example.facts if example else None] if task.synth.turns > 1 else []


def _talk(task: Task, base: Base, agent: Teacher, found: Sequence[Labelled], example: Example | None) -> list[Labelled]:
    """Go on with the conversations that some queries and their answers have begun."""
    other = _base_speaks(task, base, environment_prompt(task.template), "conversations")
    kept = [one for one in found if one.dropped is None]
    begun = [[("user", one.query), ("assistant", one.answer)] for one in kept]
    talks = converse(begun, task.synth.turns, agent.usable, other.usable, example)
    later = {id(one): talk[2:] for one, talk in zip(kept, talks, strict=True)}
    return [replace(one, turns=later.get(id(one), ())) for one in found]


def _base_speaks(task: Task, base: Base, template: str, title: str) -> Teacher:
    """Return the base behind another text than the task's template, with room for a few sentences."""
    generation = Generation(max_tokens=GENERATED_TOKENS, batch_size=task.generation.batch_size)
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), generation=generation, progress=QUIET.progress)
    return Teacher(asker, template, base.gguf if on_cpu() else None, title)


def _reasons(
    task: Task, base: Base, records: Sequence[Mapping[str, Any]], folder: Path, listeners: Listeners
) -> list[Reasoned]:
    """Return for each record what the base says without the template, what with it, and why."""
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), generation=task.generation, progress=QUIET.progress)
    gguf, synth = base.gguf if on_cpu() else None, task.synth
    reasoner = Reasoner(
        student=Teacher(asker, "", gguf),
        teacher=Teacher(asker, task.template, gguf),
        writer=_base_speaks(task, base, "", "reasons"),
        template=task.template,
        temperature=synth.reasons_temperature,
        seed=synth.seed,
    )
    key = _key(task, base, records, synth.reasons_temperature, synth.seed)
    return reasoner.find(records, Records(folder / REASONS, key, Reasoned), listeners)


def _check(folder: Path, given: _Given, answered: Sequence[tuple[Asked, Labelled]]) -> None:
    """Raise InputError when a split gets no query, or no answer that can be learned from."""
    for split, examples in ((TRAIN, given.solved), (VALID, given.valid), (TEST, given.test)):
        dropped = Counter(said.dropped for asked, said in answered if asked.split == split)
        if not dropped and not examples:
            fix = "give more queries in other words of your own, or examples"
            raise InputError(f"{split} queries", "none is left: every wording is used up", fix=fix)
        if dropped and None not in dropped:
            got = ", ".join(f"{count}: {why}" for why, count in dropped.items())
            fix = f"look at {folder / RECORDS}; raise [generation] max_tokens, or mend the template"
            raise InputError(f"{split} queries", "no answer can be learned from", got=got, fix=fix)


def _example_of(given: _Given) -> Example | None:
    """Return the longest conversation among the solved examples, the first of equals; None where there are none."""
    return max(given.solved, key=lambda example: len(example.history), default=None)


def _records(given: _Given, answered: Sequence[tuple[Asked, Labelled]]) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each file: the examples that there were, then the new ones."""
    before: Mapping[str, tuple[Example, ...]] = {TRAIN: given.solved, VALID: given.valid, TEST: given.test}
    return {split: [*_records_of(some), *_new_records(split, answered)] for split, some in before.items()}


def _write(folder: Path, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the files of examples."""
    for split, some in records.items():
        with replacing(folder / f"{split}.jsonl") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in some)


def _records_of(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Yield examples as they are written in a file."""
    for example in examples:
        if example.history:
            turns = [*example.history, ("user", example.query), ("assistant", example.answer)]
            messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
            for number in example.unlearned:
                messages[number]["weight"] = 0
            said: dict[str, Any] = {"messages": messages}
        else:
            said = {"query": example.query, "answer": example.answer}
        yield {"id": example.id} | said | dict(example.extra)


def _new_records(split: str, answered: Sequence[tuple[Asked, Labelled]]) -> Iterator[dict[str, Any]]:
    """Yield the answered queries of a split that are learned from."""
    for number, (asked, said) in enumerate(answered):
        if asked.split != split or said.dropped is not None:
            continue
        record: dict[str, Any] = {"query": said.query, "answer": said.answer}
        if said.turns:
            turns = [("user", said.query), ("assistant", said.answer), *said.turns]
            record = {"messages": [{"role": role, "content": text} for role, text in turns]}
        yield {"id": f"synth-{number}"} | record | {"origin": asked.origin}


def _report(task: Task, coverage: Coverage, answered: Sequence[tuple[Asked, Labelled]]) -> dict[str, Any]:
    """Return what was made, what was dropped and why, and how many training queries each entry has."""
    kept = [asked for asked, said in answered if said.dropped is None]
    entries = _entry_counts(coverage, kept)
    named = {row["entry"] for row in entries}
    dropped = Counter(said.dropped for _, said in answered)
    del dropped[None]
    return _lengths(task, answered) | {
        "made": {split: dict(Counter(one.origin for one in kept if one.split == split)) for split in SPLITS},
        "per_entry": task.synth.per_entry,
        "advice": _use(task),
        "dropped": dict(dropped),
        "entries": entries,
        "short": [row["entry"] for row in entries if row["queries"] < task.synth.per_entry],
        "unnamed": [entry.text for entry in coverage.entries if entry.text not in named],
    }


def _lengths(task: Task, answered: Sequence[tuple[Asked, Labelled]]) -> dict[str, dict[str, int]]:
    """Return how many conversations have how many answers, if there are conversations."""
    if task.synth.turns == 1:
        return {}
    found = Counter(1 + len(said.turns) // 2 for _, said in answered if said.dropped is None)
    return {"answers": {str(count): found[count] for count in sorted(found)}}


def _entry_counts(coverage: Coverage, kept: Sequence[Asked]) -> list[dict[str, Any]]:
    """Return for each entry that queries can name how many do, of the solved examples and of all training queries."""
    counts = Counter(coverage.known)
    for asked in kept:
        counts.update(set(asked.entries) if asked.split == TRAIN else ())
    return [
        {"entry": coverage.entries[number].text, "solved": coverage.known[number], "queries": counts[number]}
        for number in coverage.nameable
    ]


def _use(task: Task) -> str | None:
    """Return what to write into task.toml to train on what was made; None if it says so already."""
    own_test = task.files[TEST].parent != task.folder / FOLDER and task.files[TEST].exists()
    splits = [TRAIN, VALID] if own_test else [TRAIN, VALID, TEST]
    missing = [split for split in splits if task.files[split].parent != task.folder / FOLDER]
    wanted = ", ".join(f'{split} = "{FOLDER}/{split}.jsonl"' for split in missing)
    return f"to train on it, write into {task.files['task']}: {wanted}" if missing else None


def _advice(coverage: Coverage) -> str:
    """Return what to do where no query is missing, or none can be made."""
    if coverage.nameable:
        return "train on what there is, or raise [synth] per_entry"
    return 'set [synth] generator, or give queries of your own in queries.jsonl, one {"query": "..."} per line'
