"""Gives every place that changes its name, and the frames of a prompt their last form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pilocal.logs.exchange import LeftOut
from pilocal.logs.frame import QUERY, Frame
from pilocal.logs.kinds import are_beside, kind_of
from pilocal.logs.naming import slot_name, unlike
from pilocal.logs.skeleton import Skeleton, alike
from pilocal.logs.template import Slot

EXAMPLES = 3

Texts = tuple[str, str]
"""A row's system message and first turn after the shots."""


def fill_frames(
    system: Skeleton, user: Skeleton, rows: Sequence[Texts]
) -> tuple[tuple[Frame, Frame], tuple[Slot, ...], int]:
    """Return the frames of the system message and the user's turn, their slots, and how many rows have them.

    Places that hold the same in every row are one slot.
    """
    drafts = _frame(system, "system"), _frame(user, "user")
    found = list(filter(None, (_values(*drafts, *row) for row in rows)))
    columns = {name: tuple(each[name] for each in found) for draft in drafts for name in draft.names if name != QUERY}
    named = {QUERY: QUERY} | (_named(columns, drafts) if found else {name: name for name in columns})
    frames = tuple(_renamed(draft, named, columns) for draft in drafts)
    slots: dict[str, Slot] = {}
    for draft, skeleton in zip(drafts, (system, user), strict=True):
        for number in skeleton.slots:
            place = draft.names[number]
            slots.setdefault(named[place], _slot(named[place], columns[place], beside=number in skeleton.beside))
    return (frames[0], frames[1]), tuple(slots.values()), len(found)


def _frame(skeleton: Skeleton, role: str) -> Frame:
    """Return the frame of a skeleton, its slots still without names."""
    names = [QUERY if number == skeleton.query else f"{role} {number}" for number in range(len(skeleton.values))]
    texts = list(skeleton.texts)
    texts[0], texts[-1] = texts[0].lstrip("\n"), texts[-1].rstrip("\n")
    return Frame(tuple(texts), tuple(names))


def _values(system: Frame, user: Frame, asked: str, turn: str) -> dict[str, str] | None:
    """Return what a row has in each place; None where it is not clear."""
    try:
        held, found = system.match(asked), user.match(turn)
    except LeftOut:
        return None
    return None if held is None or found is None else held | found


def _named(columns: Mapping[str, Sequence[str]], drafts: Sequence[Frame]) -> dict[str, str]:
    """Return the name of each place."""
    firsts: dict[Sequence[str], str] = {}
    for place, values in columns.items():
        firsts.setdefault(values, place)
    before = {place: text for draft in drafts for place, text in zip(draft.names, draft.texts, strict=False)}
    places = list(firsts.values())
    names = unlike([_name(before[place], [value for value in columns[place] if value]) for place in places])
    known = dict(zip(places, names, strict=True))
    return {place: known[firsts[values]] for place, values in columns.items()}


def _name(before: str, values: Sequence[str]) -> str:
    """Return a name for values; where they have their label within, since others are empty, by that."""
    begins, ends = alike(values)
    return slot_name(before, values) or slot_name(
        before + begins, [value[len(begins) : len(value) - len(ends)] for value in values]
    )


def _renamed(draft: Frame, named: Mapping[str, str], columns: Mapping[str, Sequence[str]]) -> Frame:
    names = tuple(named[name] for name in draft.names)
    multiline = {named[name] for name in draft.names if any("\n" in value for value in columns.get(name, ()))}
    return Frame(draft.texts, names, frozenset(multiline))


def _slot(name: str, values: Sequence[str], *, beside: bool) -> Slot:
    times = Counter(values)
    examples = tuple(value for value, _ in times.most_common() if value)[:EXAMPLES]
    beside = are_beside(values) or (beside and not kind_of(values))
    return Slot(name=name, examples=examples, distinct=len(times), beside=beside)
