"""Which training examples may be shots, when two of them ask the same question, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pilocal.errors import InputError
from pilocal.task import Example, Retrieval

Question = tuple[tuple[tuple[str, str], ...], str]
"""Two records with the same value ask the same: the earlier turns, and the query except for spaces and capitals."""


def question(query: str, history: Sequence[tuple[str, str]] = ()) -> Question:
    """Return what two records have in common if they ask the same question."""
    return tuple(history), " ".join(query.split()).casefold()


def choose_bank(count: int, share: float, seed: int) -> tuple[int, ...]:
    """Return the numbers of the examples that may be shots, in order: a share of `count`, drawn by the seed.

    A smaller share of the same examples is always part of a larger one, so that bank sizes can be compared.

    >>> choose_bank(4, 1.0, 0)
    (0, 1, 2, 3)
    >>> set(choose_bank(100, 0.1, 0)) < set(choose_bank(100, 0.3, 0))
    True
    """
    if share == 1:
        return tuple(range(count))
    return tuple(sorted(np.random.default_rng(seed).permutation(count)[: round(share * count)].tolist()))


def check_bank(examples: Sequence[Example], config: Retrieval, k: int, seed: int, where: object) -> None:
    """Raise InputError unless the bank of these training examples has k shots for each of its own examples.

    `where` names the training file; examples that ask the same question count once.
    """
    bank = [examples[number] for number in choose_bank(len(examples), config.pool, seed)]
    found = len({question(example.query, example.history) for example in bank})
    if not k or found > k:
        return
    what = f"{k} shots need at least {k + 1} training examples with different queries"
    fix = f"add examples, or use at most {max(found - 1, 0)} shots"
    if config.pool < 1:
        what = f"pool = {config.pool:g} leaves {len(bank)} of {len(examples)} training examples as shots; {what}"
        raise InputError("[retrieval] pool", what, got=found, fix=f"raise pool, {fix}")
    raise InputError(where, what, got=found, fix=fix)


def contradictions(examples: Sequence[Example]) -> dict[Question, tuple[Example, Example]]:
    """Return the questions that have different answers: where each is first asked, and first answered otherwise."""
    first: dict[Question, Example] = {}
    other: dict[Question, Example] = {}
    for example in examples:
        asked = question(example.asked, example.history)
        if example.answer.strip() != first.setdefault(asked, example).answer.strip():
            other.setdefault(asked, example)
    return {asked: (first[asked], other[asked]) for asked in first if asked in other}
