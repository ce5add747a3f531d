"""Which entries of the template were learned: the test requests that need each, and how they are answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.chart import Dots, dots_chart
from pilocal.compress.entries import Entry, Index, read_entries, read_names
from pilocal.evaluate.arms import BASE_FULL_PROMPT, INTERNALIZED
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.task import Example, Task

ARMS = (BASE_FULL_PROMPT, INTERNALIZED)
"""The arms that are scored by entry."""

WORD = re.compile(r"\w+")

DRAWN = 80
"""Entries in the picture; of more, those with the lowest scores."""

LONGEST = 48
"""Characters of an entry in the picture."""


def needed_entries(task: Task) -> list[tuple[Entry, list[int]]]:
    """Return every entry of a task's template with the numbers of the test requests that need it.

    A request needs the entries that its query names, and those that its reference answer names. One without names needs
    the entry in which its whole answer stands, or another form that it accepts, if there is exactly one.
    """
    entries = read_entries(task.template)
    examples = (*task.train, *task.valid, *task.test)
    asked = Index(read_names(entries, [example.query for example in examples]))
    answered = Index(read_names(entries, [example.answer for example in examples]))
    needed: dict[int, list[int]] = {entry.number: [] for entry in entries}
    for number, example in enumerate(task.test):
        named = {*asked.entries_of(example.query), *answered.entries_of(example.answer)}
        for each in named or _holding(entries, example):
            needed[each].append(number)
    return [(entry, needed[entry.number]) for entry in entries]


def _holding(entries: Sequence[Entry], example: Example) -> list[int]:
    """Return the one entry in which a form of the answer stands; none if there are several."""
    accepts = example.extra.get("accepts")
    forms = [example.answer, *(accepts if isinstance(accepts, list) else ())]
    wanted = [text for form in forms if isinstance(form, str) and (text := _words(form)).strip()]
    found = [entry.number for entry in entries if any(text in _words(entry.text) for text in wanted)]
    return found if len(found) == 1 else []


def _words(text: str) -> str:
    return f" {' '.join(WORD.findall(text.casefold()))} "


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
