"""Which entries of the template were learned: the test requests that need each, and how they are answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.chart import Dots, dots_chart
from pilocal.compress.entries import Entry, Index, read_entries, read_names
from pilocal.evaluate.arms import BASE_FULL_PROMPT, INTERNALIZED
from pilocal.evaluate.scoring.contains import holds, words
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.task import Example, Task

ARMS = (BASE_FULL_PROMPT, INTERNALIZED)
"""The arms that are scored by entry."""

CONFIRMED = 0.5
"""The share of the examples naming an entry in which query and answer have to fit."""

READ = 4000
"""Examples in which names are looked for."""

DRAWN = 80
"""Entries in the picture; of more, those with the lowest scores."""

LONGEST = 48
"""Characters of an entry in the picture."""


def needed_entries(task: Task) -> list[tuple[Entry, list[int]]]:
    """Return every entry of a task's template with the numbers of the test requests that need it.

    Where the whole reference answer stands in an entry, or another form that the request accepts, that entry is needed:
    of several the one that has most in common with the query, if there is such a one. Of other answers the entries are
    needed that query and answer name.
    """
    entries = read_entries(task.template)
    indexes = _indexes(task, entries)
    needed: dict[int, list[int]] = {entry.number: [] for entry in entries}
    for number, example in enumerate(task.test):
        holding = _holding(entries, example)
        named = {each for index, side in indexes for each in index.entries_of(getattr(example, side))}
        for each in _nearest(holding, example) if holding else named:
            needed[each].append(number)
    return [(entry, needed[entry.number]) for entry in entries]


def _indexes(task: Task, entries: Sequence[Entry]) -> list[tuple[Index, str]]:
    """Return what finds names of entries in queries, and what finds them in answers, each with the side it reads.

    A common word may look like a name. So a list counts only where query and answer fit: of the examples in which one
    names an entry, the other has in CONFIRMED of them a word that no other entry of the list has.
    """
    examples = (*task.test, *task.valid, *task.train)[:READ]
    own = _own_words(entries)
    found = []
    for side, other in (("query", "answer"), ("answer", "query")):
        kept = []
        for names in read_names(entries, [getattr(example, side) for example in examples]):
            index = Index([names])
            fits = [
                not own[number].isdisjoint(words(getattr(example, other)))
                for example in examples
                for number in index.entries_of(getattr(example, side))
            ]
            if fits and sum(fits) >= CONFIRMED * len(fits):
                kept.append(names)
        found.append((Index(kept), side))
    return found


def _own_words(entries: Sequence[Entry]) -> dict[int, set[str]]:
    """Return by entry the words that no other entry of its list has."""
    count = Counter((entry.group, word) for entry in entries for word in set(words(entry.text)))
    return {entry.number: {w for w in words(entry.text) if count[entry.group, w] == 1} for entry in entries}


def _holding(entries: Sequence[Entry], example: Example) -> list[Entry]:
    """Return the entries in which a form of the answer stands."""
    accepts = example.extra.get("accepts")
    forms = [example.answer, *(accepts if isinstance(accepts, list) else ())]
    wanted = [form for form in forms if isinstance(form, str) and words(form)]
    return [entry for entry in entries if any(holds(entry.text, form) for form in wanted)]


def _nearest(entries: Sequence[Entry], example: Example) -> list[int]:
    """Return the one of some entries that shares the most words with the query; none if two do."""
    asked = set(words(example.query))
    common = {entry.number: len(asked.intersection(words(entry.text))) for entry in entries}
    best = [number for number, count in common.items() if count == max(common.values())]
    return best if len(best) == 1 else []


def score_entries(task: Task, metric: Metric, marks: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Return what metrics.json says of each entry, and last, under None, of the requests that need none.

    `marks` holds the marks of the arms by their names. An entry without requests has no scores. Nothing is said where
    no request needs an entry.
    """
    needed = needed_entries(task)
    named = {number for _, numbers in needed for number in numbers}
    if not named:
        return []
    rest = [number for number in range(len(task.test)) if number not in named]
    lines: list[tuple[str | None, list[int]]] = [(entry.text, numbers) for entry, numbers in needed]
    if rest:
        lines.append((None, rest))
    return [
        {"entry": text, "requests": len(numbers)}
        | {arm.name: metric.total(marks[arm.name][numbers]) if numbers else None for arm in ARMS}
        for text, numbers in lines
    ]


def draw_entries(scored: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draw the scores of the entries that requests need, with and without the prompt; raises RunError on a full disk.

    `scored` is what `score_entries` returns.
    """
    shown = [line for line in scored if line["requests"]]
    if len(shown) > DRAWN:
        kept = sorted(shown, key=lambda line: float(line[INTERNALIZED.name]))[:DRAWN]
        shown = [line for line in shown if any(line is one for one in kept)]
    names = [f"{_short(line['entry'])} ({line['requests']})" for line in shown]
    series = [Dots(name=arm.title, x=[line[arm.name] for line in shown]) for arm in ARMS]
    entries = sum(line["entry"] is not None for line in scored)
    title = f"Score by entry of the template; {len(shown)} of {entries} and the requests that need each"
    dots_chart(path, names, series, title=title, x=metric)


def _short(text: str | None) -> str:
    if text is None:
        return "no entry"
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
