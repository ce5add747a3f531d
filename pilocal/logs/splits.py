"""Which rows are trained on, validated and tested: by content, so that nothing that is tested was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

SPLITS = TRAIN, VALID, TEST = ("train", "valid", "test")

SHARE = 0.1
"""Of the rows that go to validation, and of those that go to the test."""

MOST = 500
"""Rows of validation, and of the test."""


def split(groups: Sequence[int], drawn: Sequence[bytes], trained: Collection[int] = ()) -> list[str]:
    """Return the split of each row: rows of one group are in one, whatever the order of the rows.

    `drawn` are hashes of the rows' contents, by which the groups are drawn. Groups in `trained` are trained on. There
    must be three other groups, or two and one of these.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        members[group].append(number)
    order = sorted(members.keys() - set(trained), key=lambda group: min(drawn[number] for number in members[group]))
    target = min(MOST, max(1, round(SHARE * len(groups))))
    chosen: dict[int, str] = {}
    spare = len(order) - (0 if trained else 1)
    for name in (TEST, VALID):
        left = target
        for group in order:
            if group not in chosen and len(members[group]) <= left and len(chosen) < spare:
                chosen[group] = name
                left -= len(members[group])
        if left == target:
            smallest = min((group for group in order if group not in chosen), key=lambda group: len(members[group]))
            chosen[smallest] = name
    return [chosen.get(group, TRAIN) for group in groups]
