"""A synthesis from a task folder to its files: TASK/synth/{train,valid,test}.jsonl and report.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pilocal
from pilocal.base.base import Base, find_base
from pilocal.base.device import on_cpu
from pilocal.compress.entries import read_entries
from pilocal.errors import InputError, PilocalError, raise_all
from pilocal.evaluate.asking import Asker
from pilocal.evaluate.scoring.metrics import Metric, make_metric, metric_facts
from pilocal.flow.listeners import QUIET, Listeners
from pilocal.flow.setups import base_for
from pilocal.prompt.tokens import end_tokens
from pilocal.retrieve.embeddings import EmbeddingVectors
from pilocal.retrieve.ngrams import NgramVectors
from pilocal.run_folder.files import write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.synth.conversation import environment_prompt
from pilocal.synth.endpoint import Endpoint
from pilocal.synth.generator import ALIKE, MEAN_THE_SAME, Sieve, Vectors, Write, generate
from pilocal.synth.labels import Labeller
from pilocal.synth.queries import TEST, TRAIN, VALID, Asked, Coverage, cover
from pilocal.synth.reasons import Reasoned, Reasoner, reasons_report, with_reasons
from pilocal.synth.records import Labelled, Records, Remembered
from pilocal.synth.report import report_of
from pilocal.synth.stale import Memory
from pilocal.synth.teacher import CHUNK, Teacher
from pilocal.synth.written import new_records, records_of, write_records
from pilocal.task import Example, Generation, Task, load_task
from pilocal.task.examples import OwnQuery, load_examples, load_own_queries
from pilocal.task.faults import merged
from pilocal.task.slots import line_of_slot
from pilocal.task.synth_table import WHOLE
from pilocal.task.text import key_of, path_of
from pilocal.task.toml import read_text

FOLDER = "synth"
"""Below the task folder."""

GENERATED_FILE = "generated.json"
"""Every text of a generator."""

GENERATED_TOKENS = 256
"""The longest that a generator may write at once."""

SOLVED_FILE = "solved.json"
"""What the entries said that the solved examples name."""

RECORDS = "records.jsonl"
"""Every answer, those that are dropped, too."""

REASONS = "reasons.jsonl"
"""What the base says of each record without the template, what with it, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What there is already."""

    solved: tuple[Example, ...]
    own: tuple[str, ...]
    declared: Mapping[str, int]
    """The entry that some of your own ask for, by `key_of`."""
    valid: tuple[Example, ...]
    test: tuple[Example, ...]


def synthesize(task: str | Path, *, listeners: Listeners = QUIET) -> dict[str, Any]:
    """Make training data of a task's template and return what report.json says; called again, it resumes.

    The examples that there are come first in each file, then new queries, answered by the base with the whole template.
    Raises InputError or Faults for the task, ModelError for the base, RunError if the disk is full.
    """
    read = load_task(path_of(task), data=False)
    if read.slots:
        what = f"no values are made up for its slots ({', '.join(read.slots)})"
        where = f"{read.files['template']}:{line_of_slot(read_text(read.files['template']), read.slots[0])}"
        raise InputError(where, what, fix="write the rows with their values yourself")
    folder = read.folder / FOLDER
    given, base = _without_stale(read, _read_given(read, folder), folder, listeners), base_for(read)
    metric = make_metric(read.metric, read.scoring, read.folder)
    coverage = _cover(read, given)
    teacher = _teacher(read, base, listeners)
    teacher.check([one.query for one in coverage.asked] or [""], read.files["template"])
    if read.synth.generator:
        _generate(read, base, given, coverage, folder, listeners)
    for split in (VALID, TEST):
        if not getattr(given, split):
            coverage.hold_out(split)
    if not coverage.asked:
        got = f"{len(coverage.nameable)} of {len(coverage.entries)} entries"
        what = "every entry that queries name has enough of them" if coverage.nameable else "no query names an entry"
        raise InputError(read.files["template"], what, got=got, fix=_advice(coverage))
    labeller = _labeller(read, base, metric, teacher, given)
    kept = Records(folder / RECORDS, _answers_key(read, base, labeller, coverage.asked), Labelled)
    answered = _answer(labeller, coverage.asked, kept, listeners)
    _check(folder, given, answered)
    records = _records(read, base, given, answered, coverage)
    report = report_of(read, coverage, answered, _use(read))
    if read.synth.reasons:
        report["reasons"] = _give_reasons(read, base, records, folder, listeners)
    write_records(folder, records)
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
    asked = load_own_queries(own) if own.exists() else ()
    return _Given(
        solved=solved,
        own=tuple(each.query for each in asked),
        declared=_declared(task, asked),
        valid=read(VALID),
        test=read(TEST),
    )


def _declared(task: Task, asked: Iterable[OwnQuery]) -> dict[str, int]:
    """Return the numbers of the entries that queries say they ask for.

    Raises InputError or Faults for those that are not there, with line numbers.
    """
    numbers = {_words(entry.text): entry.number for entry in read_entries(task.template)}
    declared, faults = dict[str, int](), list[PilocalError]()
    for each in asked:
        if each.entry is None:
            continue
        if (number := numbers.get(_words(each.entry))) is None:
            what, fix = f"{task.files['template'].name} has no such entry", "write it as the template has it"
            faults.append(InputError(each.where, what, got=each.entry[:60], fix=fix))
        else:
            declared[key_of(each.query)] = number
    raise_all(merged(faults))
    return declared


def _words(text: str) -> str:
    """Return an entry as it is looked up: without the mark of a list, whatever the white space."""
    return " ".join(text.removeprefix("- ").removeprefix("* ").split())


def _without_stale(task: Task, given: _Given, folder: Path, listeners: Listeners) -> _Given:
    """Return what there is with the solved examples whose entries have changed since as queries without answers.

    Warns of them, and of such examples in validation and test, which are the user's to correct.
    """
    everything = (*given.solved, *given.valid, *given.test)
    memory = Memory(folder / SOLVED_FILE, task.template, [*_asked(everything), *given.own])
    stale = {id(each) for each in everything if memory.is_stale(each)}
    memory.save()
    for split, examples in ((TRAIN, given.solved), (VALID, given.valid), (TEST, given.test)):
        if count := len(stale.intersection(map(id, examples))):
            what = f"{count} of {len(examples)} examples name an entry that has changed since"
            done = "they are asked anew" if split == TRAIN else "correct their answers"
            listeners.warn(f"{task.files['task']}, {split}: {what}; {done}")
    asked = tuple(each.query for each in given.solved if id(each) in stale and not each.history)
    solved = tuple(each for each in given.solved if id(each) not in stale)
    return replace(given, solved=solved, own=(*asked, *given.own))


def _asked(examples: Iterable[Example]) -> list[str]:
    """Return all that examples ask: of a conversation each turn whose answer is learned."""
    return [query for example in examples for query in example.learned_queries]


def _cover(task: Task, given: _Given) -> Coverage:
    held_out = {VALID: _asked(given.valid)}
    if not given.test:
        held_out[TEST] = []
    return cover(
        task.template,
        _asked(given.solved),
        given.own,
        _asked((*given.valid, *given.test)),
        per_entry=task.synth.per_entry,
        seed=task.synth.seed,
        held_out=held_out,
        declared=given.declared,
    )


def _generate(task: Task, base: Base, given: _Given, coverage: Coverage, folder: Path, listeners: Listeners) -> None:
    """Have queries written for the entries that still have too few."""
    held_out = [VALID] if given.test else [VALID, TEST]
    wanted = coverage.lacking(task.synth.per_entry, held_out)
    like = [*_asked(given.solved), *given.own]
    sieve = Sieve(coverage.taken, _alike(task, like))
    write = _writer(task, base, folder / GENERATED_FILE, listeners)
    made: dict[int, list[tuple[tuple[int, ...], str]]] = {}
    total = sum(lacks for _, lacks in wanted)
    for entries, query in generate(task.template, wanted, like, write, sieve, task.synth.seed):
        numbers = tuple(entry.number for entry in entries)
        made.setdefault(numbers[0], []).append((numbers, query))
        listeners.progress("queries", sum(map(len, made.values())), total)
    for entry, _ in wanted:
        coverage.add(entry, made.get(entry.number, ()), task.synth.per_entry, held_out)
    if wanted and not made:
        fix = "look at what it wrote, and take another generator"
        raise InputError("[synth] generator", "nothing that it writes is a query", got=folder / GENERATED_FILE, fix=fix)


def _alike(task: Task, like: Sequence[str]) -> list[tuple[Vectors, float]]:
    """Return how two queries are found to be nearly the same."""
    found: list[tuple[Vectors, float]] = [(NgramVectors(like), ALIKE)]
    if task.synth.similarity == "embedding":
        embed = EmbeddingVectors(task.retrieval.embedding_model, task.folder, '[synth] similarity = "embedding"')
        found.append((embed, MEAN_THE_SAME))
    return found


def _writer(task: Task, base: Base, path: Path, listeners: Listeners) -> Write:
    """Return who writes queries and remembers in a file what it wrote."""
    settings = task.synth
    name = settings.generator or ""
    if settings.is_endpoint:
        endpoint = Endpoint(name, settings.generator_model, settings.budget, budget_tokens=settings.budget_tokens)
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


def _teacher(task: Task, base: Base, listeners: Listeners) -> Teacher:
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), generation=task.generation, progress=listeners.progress)
    return Teacher(asker, task.template, base.gguf if on_cpu() else None)


def _labeller(task: Task, base: Base, metric: Metric, teacher: Teacher, given: _Given) -> Labeller:
    """Return who answers; the longest conversation among the solved examples, if any, shows how to play the user."""
    known: dict[str, Any] = {"teacher": teacher, "metric": metric, "template": task.template, "settings": task.synth}
    if task.synth.turns > 1:
        known["environment"] = _base_speaks(task, base, environment_prompt(task.template), "conversations")
        known["example"] = max(given.solved, key=lambda example: len(example.history), default=None)
    return Labeller(**known)


def _base_speaks(task: Task, base: Base, template: str, title: str) -> Teacher:
    """Return the base behind another text than the task's template, with room for a few sentences."""
    generation = Generation(max_tokens=GENERATED_TOKENS, batch_size=task.generation.batch_size)
    asker = Asker(base=base, ends=end_tokens(base.tokenizer), generation=generation, progress=QUIET.progress)
    return Teacher(asker, template, base.gguf if on_cpu() else None, title)


def _key(task: Task, base: Base, *more: Any) -> str:
    """Return what decides what the base says."""
    return fingerprint(pilocal.__version__, base.sha256, task.template, asdict(task.generation), *more)


def _answers_key(task: Task, base: Base, labeller: Labeller, asked: Sequence[Asked]) -> str:
    """Return what decides every answer, and whether it is learned."""
    settings = [task.synth.temperature, task.synth.seed if task.synth.temperature else 0, task.synth.agreement]
    example = labeller.example.facts if labeller.example else None
    talking: list[Any] = [task.synth.turns, example] if task.synth.turns > 1 else []
    talking += [task.synth.prompt] if task.synth.prompt != WHOLE else []
    return _key(task, base, settings, metric_facts(task, labeller.metric), [*map(asdict, asked)], *talking)


def _answer(
    labeller: Labeller, asked: Sequence[Asked], records: Records[Labelled], listeners: Listeners
) -> list[tuple[Asked, Labelled]]:
    """Return every query with its answer, those of an interrupted synthesis included."""
    for begin in records.missing(len(asked), CHUNK):
        chunk = asked[begin : begin + CHUNK]
        records.add(labeller.label(chunk, begin))
        listeners.progress("synth", begin + len(chunk), len(asked))
    return list(zip(asked, records.done, strict=True))


def _give_reasons(
    task: Task, base: Base, records: dict[str, list[dict[str, Any]]], folder: Path, listeners: Listeners
) -> dict[str, int]:
    """Add to the records of training and validation what the base says without the template, what with it, and why.

    Returns what report.json says about the reasons.
    """
    wanted = [record for split in (TRAIN, VALID) for record in records[split]]
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
    key = _key(task, base, wanted, synth.reasons_temperature, synth.seed)
    found = reasoner.find(wanted, Records(folder / REASONS, key, Reasoned), listeners)
    reasoned = iter(map(with_reasons, wanted, found))
    records |= {split: list(islice(reasoned, len(records[split]))) for split in (TRAIN, VALID)}
    return reasons_report(found)


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


def _records(
    task: Task, base: Base, given: _Given, answered: Sequence[tuple[Asked, Labelled]], coverage: Coverage
) -> dict[str, list[dict[str, Any]]]:
    """Return the records of each file: the examples that there were, then the new ones."""
    before: Mapping[str, tuple[Example, ...]] = {TRAIN: given.solved, VALID: given.valid, TEST: given.test}
    made_by = _made_by(task, base)
    return {
        split: [*records_of(some), *new_records(split, answered, coverage, made_by)] for split, some in before.items()
    }


def _made_by(task: Task, base: Base) -> dict[str, Any]:
    """Return what every new record says of where its answer comes from."""
    model = {"model": task.model, "base_sha256": base.sha256, "template_sha256": fingerprint(task.template)}
    prompt = {} if task.synth.prompt == WHOLE else {"prompt": task.synth.prompt}
    return model | {"seed": task.synth.seed, "temperature": task.synth.temperature} | prompt


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
