"""A sample of a task's examples, from which a check plans where there are many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.rendering import SPLITS
from pilocal.retrieve.bank import question
from pilocal.task import Example

MANY = 5_000
"""Where a split has more examples a check looks at a sample."""

SAMPLE = 500
"""Examples of each split that are then looked at, spread evenly, and the LONGEST as well."""

LONGEST = 16
"""Where a row is too long for the base or its step for the memory, it is most likely one of these."""


@contextmanager
def sampled(context: Context) -> Iterator[Context]:
    """Return a context with a sample of each split where one has more than MANY examples; as it is where none has.

    Its shots come from all of the sample, and are kept nowhere; all else belongs to the same run.
    """
    task = context.task
    if not parts(context):
        yield context
        return
    chosen: dict[str, Any] = {split: sample(getattr(task, split), context.max_shots) for split in SPLITS}
    chosen["retrieval"] = replace(task.retrieval, pool=1.0)  # a small part of a sample would be too few
    with tempfile.TemporaryDirectory(prefix="pilocal-") as folder:
        yield replace(context, task=replace(task, **chosen), whole=task, shots=Path(folder))


def sample(examples: Sequence[Example], shots: int = 0) -> tuple[Example, ...]:
    """Return a sample in the order of the examples, of which more than `shots` ask different questions; or all of few.

    >>> many = [Example(id=str(n), query=f"{n:06}", answer="a") for n in range(10_000)]
    >>> [each.id for each in sample(many)[:3]], len(sample(many)), sample(many[:500]) == tuple(many[:500])
    (['0', '1', '2'], 515, True)
    """
    if len(examples) <= SAMPLE:
        return tuple(examples)
    spread = {(place * len(examples)) // SAMPLE for place in range(SAMPLE)}
    longest = sorted(range(len(examples)), key=lambda number: (-_length(examples[number]), number))[:LONGEST]
    asked, others = {question(examples[number].query, examples[number].history) for number in spread}, set[int]()
    for number, example in enumerate(examples):
        if len(asked) > shots:
            break
        if (own := question(example.query, example.history)) not in asked:
            asked.add(own)
            others.add(number)
    return tuple(examples[number] for number in sorted({*spread, *longest, *others}))


def parts(context: Context) -> Mapping[str, int]:
    """Return how many examples each split has from which a sample is taken."""
    counts = {split: len(getattr(context.task, split)) for split in SPLITS}
    return {split: count for split, count in counts.items() if count > SAMPLE} if max(counts.values()) > MANY else {}


def _length(example: Example) -> int:
    return len(example.query) + len(example.answer) + sum(len(text) for _, text in example.history)
