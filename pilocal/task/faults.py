"""One fault in every row is one line with a count, so that it does not bury the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pilocal.errors import InputError, PilocalError

KINDS = 5
"""How many kinds of fault of one file are told."""


def merged(faults: Sequence[PilocalError]) -> list[PilocalError]:
    """Return one fault for each kind, at the first and with their number; after KINDS of them, one for the rest.

    `faults` are those of one file, by line: each `where` is "FILE:LINE". They are of one kind if their problems differ
    in numbers only.

    >>> rows = [InputError(f"a.jsonl:{line}", "the answer is empty", fix="fill it in") for line in (2, 3, 9)]
    >>> print(*merged(rows))
    a.jsonl:2: the answer is empty, and 2 more like it, the last on line 9; fill it in
    """
    kinds: dict[str, list[PilocalError]] = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"\d+", "#", fault.problem), []).append(fault)
    told = [_one(alike) for alike in list(kinds.values())[:KINDS]]
    if others := [fault for alike in list(kinds.values())[KINDS:] for fault in alike]:
        what = f"{len(others)} faults of other kinds, of which this is the first: {others[0].problem}"
        told.append(InputError(others[0].where, what, got=others[0].got, fix="correct those above first"))
    return told


def _one(alike: Sequence[PilocalError]) -> PilocalError:
    first = alike[0]
    if len(alike) == 1:
        return first
    last = alike[-1].where.rpartition(":")[2]
    what = f"{first.problem}, and {len(alike) - 1} more like it, the last on line {last}"
    return InputError(first.where, what, got=first.got, fix=first.fix)
