"""Whether there is anything to internalize, before hours are spent: what the prompt is worth, entry by entry.

The gap is how much likelier the base finds the validation answers with the whole prompt than with the bare query. The
census takes every entry of the template out, one at a time, and looks by how much that moves the answers. What moves
none, because no query touches it, no training will learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pilocal.chart import Bars, bars_chart
from pilocal.compress.entries import Index, read_entries, read_names, without
from pilocal.flow.context import Context
from pilocal.flow.rendering import RenderedStage
from pilocal.flow.setups import helping_setup
from pilocal.prompt.render import render
from pilocal.prompt.tokens import Row, tokenize
from pilocal.task import Example
from pilocal.training.backend import shards
from pilocal.training.protocol import Teacher

EXAMPLES = 16
"""Validation examples whose answers are looked at."""

PER_ENTRY = 3
"""Examples whose answers are looked at without an entry: those that name it, or else as many others."""

NOTHING = 0.02
"""A prompt that makes answers likelier by less, in nats per token, has nothing to give."""

UNLIKELY = 2.0
"""Where a token of the answers is less likely with the prompt, in nats, the prompt does not work on the base."""

SECONDS = 120
"""A census that would take a CPU longer is left out, unless it is asked for."""

QUERIES = 100_000
"""So is one that would look for the entries in more training queries."""

SYNTH = "`pilocal synth` makes some"
"""What to do about entries that no query asks for."""

CPU_SPEED = 2e10
"""Floating-point operations a second that a CPU does at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFacts:
    """What one entry of the template is worth."""

    entry: str
    nats: float
    """By how much the answers to the queries that were looked at become less likely without it: nats an answer."""
    queries: int | None
    """How many training queries name it; None where queries cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What the prompt is worth to the base, on validation examples."""

    examples: int
    full: float
    """The mean cross-entropy of the answers with the whole prompt, in nats per token."""
    bare: float
    """The same with the bare query."""
    entries: tuple[EntryFacts, ...]
    """Every entry, in the template's order."""

    @property
    def untouched(self) -> list[str]:
        """The entries that training queries could name and do not."""
        return [facts.entry for facts in self.entries if facts.queries == 0]

    @property
    def doubts(self) -> list[str]:
        """Why a training may not be worth it, one line each."""
        found = []
        if self.bare - self.full < NOTHING:
            found.append("the base answers as well without the prompt: there is nothing to gain")
        if self.full > UNLIKELY:
            found.append(f"even with the prompt the base finds the answers unlikely ({self.full:.2f} nats per token)")
        return found

    @property
    def hints(self) -> list[str]:
        """What follows for the user, one line each."""
        found = self.doubts
        if count := len(self.untouched):
            some = f"{count} entries of the template are" if count > 1 else "1 entry of the template is"
            such = f", such as {self.untouched[0]!r}" if count > 1 else f", {self.untouched[0]!r}"
            found.append(f"{some} in no training query{such}; {SYNTH}")
        return found


def draw_census(gap: Gap, path: Path, title: str) -> None:
    """Draw what each entry is worth as an SVG file, in the template's order, those that no query touches apart.

    Raises InputError where matplotlib is missing, RunError when the file cannot be written.
    """
    touched = [facts for facts in gap.entries if facts.queries != 0]
    untouched = [facts for facts in gap.entries if facts.queries == 0]
    groups = [
        Bars(title=name, names=[facts.entry for facts in some], values=[facts.nats for facts in some])
        for name, some in (("no training query names them", untouched), ("the other entries", touched))
    ]
    bars_chart(path, groups, title=title, x="nats by which an answer becomes less likely without the entry")


def takes_long(context: Context) -> bool:
    """Tell whether the census would take a CPU longer than SECONDS, at a guess, or has to read many queries.

    A base that is sharded over processes is not read by one.
    """
    from pilocal.flow.references import has_accelerator

    if shards() > 1 or len((context.whole or context.task).train) > QUERIES:
        return True
    template = context.task.template
    tokens = (len(read_entries(template)) + 4 * EXAMPLES) * (len(template) / 4 + 200)
    return not has_accelerator(context) and seconds_on_cpu(context, tokens) > SECONDS


def seconds_on_cpu(context: Context, tokens: float) -> float:
    """Return how long a CPU reads so many tokens, at a guess that is rather too long."""
    config = context.base.config
    layer = 4 * config["hidden_size"] ** 2 + 3 * config["hidden_size"] * config["intermediate_size"]
    return float(2 * config["num_hidden_layers"] * layer * tokens / CPU_SPEED)


def longest_prompt(context: Context) -> int:
    """Return the tokens of the longest row that a census reads: the whole template, a query and its answer."""
    examples = sorted((*context.task.train, *context.task.valid), key=lambda one: len(one.query) + len(one.answer))
    return max(len(row.tokens) for row in _rows(context, context.task.template, examples[-EXAMPLES:]))


def measure_gap(context: Context, stages: Sequence[RenderedStage]) -> Gap:
    """Look at the base with the whole prompt, without it, and without each entry; raises ModelError for its weights."""
    teacher: Teacher = helping_setup(context).teacher()
    chosen = context.task.valid[:EXAMPLES]
    first, last = (stages[number].valid[: len(chosen)] for number in (0, context.last_stage))
    whole = [row.completed_as(answer) for row, answer in zip(first, last, strict=True)]  # without any working
    full, bare = (_per_token(teacher, some) for some in (whole, last))
    return Gap(examples=len(chosen), full=full, bare=bare, entries=tuple(_census(context, teacher)))


def _per_token(teacher: Teacher, rows: Sequence[Row]) -> float:
    losses: list[float] = [loss for row in teacher.losses(rows) for loss in row.tolist()]
    return mean(losses)


def _census(context: Context, teacher: Teacher) -> list[EntryFacts]:
    task = context.whole or context.task
    entries, asked = read_entries(task.template), [example.learned_queries for example in task.train]
    index = Index(read_names(entries, [query for queries in asked for query in queries]))
    naming, counts = _naming(index, (*task.train, *task.valid)), _naming(index, task.train)
    looked_at = [(naming.get(each.number) or _spread(task.valid, each.number))[:PER_ENTRY] for each in entries]
    every = list({id(example): example for some in looked_at for example in some}.values())
    losses = _answers(context, teacher, task.template, every)  # in one go, which reads the whole template once
    whole = dict(zip(map(id, every), losses, strict=True))
    found = []
    for entry, some in zip(entries, looked_at, strict=True):
        cut = _answers(context, teacher, without(task.template, entry), some)
        nats = mean(loss - whole[id(example)] for example, loss in zip(some, cut, strict=True))
        queries = len(counts[entry.number]) if entry.number in counts else None
        found.append(EntryFacts(entry=entry.text, nats=nats, queries=queries))
        context.progress("census", entry.number + 1, len(entries))
    return found


def _naming(index: Index, examples: Sequence[Example]) -> dict[int, list[Example]]:
    """Return the examples whose queries name each entry that queries can name."""
    naming: dict[int, list[Example]] = {number: [] for number in index.names}
    for example in examples:
        for number in set(index.entries_of(*example.learned_queries)):
            naming[number].append(example)
    return naming


def _spread(examples: Sequence[Example], start: int) -> list[Example]:
    """Return some examples, others for another start."""
    return [examples[(start * PER_ENTRY + i) % len(examples)] for i in range(min(PER_ENTRY, len(examples)))]


def _answers(context: Context, teacher: Teacher, template: str, examples: Sequence[Example]) -> list[float]:
    """Return the cross-entropy of each example's whole answer after a template, in nats."""
    return [float(losses.sum()) for losses in teacher.losses(_rows(context, template, examples))]


def _rows(context: Context, template: str, examples: Sequence[Example]) -> list[Row]:
    """Return examples as they are asked after a template."""
    tokenizer = context.base.tokenizer
    return [tokenize(render(template, [], example), tokenizer, f"census, {example.id}") for example in examples]
