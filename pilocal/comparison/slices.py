"""The two slices of a test set: queries that training answers prepare for, and queries that only the template does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pilocal.task import Example, Task

WORD = re.compile(r"\w+")

TAUGHT, TEMPLATE_ONLY = "taught", "template-only"


def slices(task: Task) -> dict[str, list[int]]:
    """Return the numbers of the test queries of each slice.

    A query's entries are the words of its answer that stand in the template. The query is `taught` if each of them
    occurs in a training answer. It is `template-only` if one of them does not: only the template knows that one.
    """
    known, listed = _words(task.train), set(WORD.findall(task.template))
    found: dict[str, list[int]] = {TAUGHT: [], TEMPLATE_ONLY: []}
    for number, example in enumerate(task.test):
        missing = (_words([example]) & listed) - known
        found[TEMPLATE_ONLY if missing else TAUGHT].append(number)
    return found


def _words(examples: Sequence[Example]) -> set[str]:
    return {word for example in examples for word in WORD.findall(example.answer)}
