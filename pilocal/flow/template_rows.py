"""Rows that teach the template itself: it is written from what it changes (GenPI), and its entries are restated."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pilocal.compress.entries import read_entries
from pilocal.errors import InputError
from pilocal.task import Example, Task
from pilocal.task.tables import GENPI

WITHOUT, WITH, REASON = FIELDS = ("without_prompt", "with_prompt", "reason")
"""The fields of a record: what the base answers without the template and with it, and why the answer has to change.

`pilocal synth` writes them.
"""

PIECE = re.compile(r"\s*\S{1,16}")
"""Where a template may be cut: between words, and within what has no spaces for long."""

OVERLAP = 8
"""Two parts of a template that follow each other share this part of their length, or a piece."""

QUOTED = 12
"""Pieces of the template that are quoted to say where to go on."""

WORDINGS = (
    ("What do you have to keep in mind?", "- {}"),
    ("Write down the rules that you work by, one a line.", "Rule: {}"),
    ("What were you told?", "I was told: {}"),
    ("List what you know from your instructions.", "{}"),
    ("Remind me of your instructions, in any order.", "Remember: {}"),
)
"""Requests for the entries of a template, and how each is then restated."""

Count = Callable[[str], int]
"""Counts the tokens of a text."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a template that is written at once."""

    text: str
    before: str
    """The last words before it; empty for the first."""


def windows(template: str, count: Count, limit: int) -> list[Window]:
    """Return a template in parts of at most `limit` tokens that overlap: all of it, but for white space at the ends.

    A part has one piece at least, however many tokens that are.

    >>> [part.text for part in windows("a b c d e f", lambda text: len(text.split()), 4)]
    ['a b c d', 'd e f']
    >>> windows("a b c d", lambda text: len(text.split()), 3)[1]
    Window(text='c d', before='a b')
    """
    pieces, found, begin = PIECE.findall(template), list[Window](), 0
    while begin < len(pieces):
        ends = range(begin + 1, len(pieces) + 1)
        fitting = bisect_right(ends, limit, key=lambda end: count("".join(pieces[begin:end])))
        end = begin + max(1, fitting)
        text, before = (part.strip() for part in map("".join, (pieces[begin:end], pieces[:begin][-QUOTED:])))
        found.append(Window(text, before))
        if end == len(pieces):
            break
        back = max(begin + 1, end - 1)
        while back - 1 > begin and count("".join(pieces[back - 1 : end])) <= limit // OVERLAP:
            back -= 1
        begin = back
    return found


def request(example: Example, window: Window, *, reasoned: bool = False) -> str:
    """Return what asks for a part of the template, given an example; with `reasoned` for the reason, too."""
    parts = [f"This was asked:\n\n{_asked(example)}"]
    if without := example.extra.get(WITHOUT):
        parts.append(f"The answer without any instructions:\n\n{without}")
    parts.append(f"The answer by the instructions:\n\n{example.extra.get(WITH) or example.answer}")
    wanted = "Write down the instructions"
    if window.before:
        wanted += f" from where they say:\n\n{window.before}\n\nGo on behind that"
    parts.append(wanted + (", then say why the answer had to change." if reasoned else "."))
    return "\n\n".join(parts)


def generation_parts(task: Task, count: Count) -> list[Window]:
    """Return the parts of a task's template that its training writes; none unless its objective is "genpi"."""
    if task.training.objective != GENPI:
        return []
    return windows(task.template, count, task.training.genpi_window)


def restated_examples(task: Task, count: Count) -> list[Example]:
    """Return the examples that restate the entries of a task's template, as often as the task says.

    A slot is restated as the template has it; the values before these requests are those of training examples.
    """
    training = task.training
    found = list(restated(task.template, training.restate, count, training.genpi_window, training.seed))
    if not task.slots:
        return found
    return [replace(each, slots=task.train[number % len(task.train)].slots) for number, each in enumerate(found)]


def template_facts(task: Task) -> list[Any]:
    """Return what decides these rows beside the template and the examples; nothing where there are none."""
    training = task.training
    written = [GENPI, training.genpi_window] if training.objective == GENPI else []
    return written + ([training.restate, training.genpi_window, training.seed] if training.restate else [])


def _asked(example: Example) -> str:
    turns = [(role, text) for role, text in (*example.history, ("user", example.query))]
    return example.query if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def generation_examples(example: Example, parts: Sequence[Window], where: object) -> list[Example]:
    """Return the examples that write a template from one of its task's, one for each part; the last has the reason.

    Raises InputError for one of FIELDS that is no text.
    """
    for name in FIELDS:
        if not isinstance(example.extra.get(name, ""), str | None):
            got = example.extra[name]
            raise InputError(
                where, f"{example.id}: the {name} must be text", got=got, fix="write it as text, in quotes"
            )
    found = []
    for number, part in enumerate(parts):
        reason = (example.extra.get(REASON) or "").strip() if number == len(parts) - 1 else ""
        target = f"{part.text}\n\n{reason}" if reason else part.text
        query = request(example, part, reasoned=bool(reason))
        found.append(Example(id=f"{example.id}-template-{number}", query=query, answer=target, slots=example.slots))
    return found


def restated(template: str, times: int, count: Count, limit: int, seed: int) -> Iterator[Example]:
    """Yield examples that state all entries of a template so many times, each time in an order and a wording.

    An example states as many entries as `limit` tokens hold, and one at least.
    """
    entries, draw = [entry.text for entry in read_entries(template)], random.Random(seed)
    for time in range(times):
        query, form = WORDINGS[time % len(WORDINGS)]
        draw.shuffle(entries)
        said = list[str]()
        for number, line in enumerate(form.format(text) for text in entries):
            if said and count("\n".join([*said, line])) > limit:
                yield Example(id=f"restated-{time}-{number}", query=query, answer="\n".join(said))
                said = []
            said.append(line)
        if said:
            yield Example(id=f"restated-{time}", query=query, answer="\n".join(said))
