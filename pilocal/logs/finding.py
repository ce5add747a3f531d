"""Finds the prompts that the requests of a log repeat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

from pilocal.logs.alignment import LEAST, Aligned, align_sentences
from pilocal.logs.asking import LABEL, align_user, part_query, query_hole
from pilocal.logs.exchange import Exchange
from pilocal.logs.families import families, fewest
from pilocal.logs.filling import fill_frames
from pilocal.logs.frame import QUERY, Frame
from pilocal.logs.kinds import is_data
from pilocal.logs.skeleton import are_few, refined, skeleton_of
from pilocal.logs.template import Pair, Part, Template, pairs_of
from pilocal.logs.units import SHARE, shared, word_count
from pilocal.task.chat import Turn

DEEPEST = 6
"""How often a family is divided into versions."""


def find_templates(rows: Sequence[Exchange]) -> list[Template]:
    """Return the templates of some requests, those of the most rows first; none where no prompt recurs."""
    found: list[Template] = []
    for number, members in enumerate(families(rows)):
        if len(members) >= fewest(len(rows)):
            found += _versions([rows[member] for member in members], number, fewest(len(rows)), 0)
    merged: dict[object, Template] = {}
    for each in found:
        key = (each.system, each.user, each.opening)
        known = merged.get(key)
        merged[key] = replace(known, rows=known.rows + each.rows) if known else each
    return sorted((each for each in merged.values() if re.search(r"\w", each.words)), key=lambda each: -each.rows)


def _versions(rows: Sequence[Exchange], family: int, least: int, depth: int) -> list[Template]:
    """Return the templates of one family: one, or its versions."""
    draft = _Draft.of(rows)
    versions = draft.versions() if depth < DEEPEST else []
    if not versions:
        rest = [row for number, row in enumerate(rows) if number not in draft.members]
        found = [draft.template(family)] if len(draft.members) >= least else []
        more = _versions(rest, family, least, depth + 1) if len(rest) >= least and depth < DEEPEST and found else []
        return found + more
    found = []
    for numbers in versions:
        if len(numbers) >= least:
            found += _versions([rows[number] for number in numbers], family, least, depth + 1)
    return found


@dataclass(slots=True)
class _Draft:
    """What the requests of a family have in common, as far as it is known."""

    rows: Sequence[Exchange]
    shots: tuple[Pair, ...]
    opening: Pair | None
    turns: list[tuple[Turn, ...]]
    """Each row's turns after the opening and the shots."""
    system: Aligned
    user: Aligned
    pivot: int
    """The hole of the user's turn that is the query."""
    members: list[int] = field(default_factory=list)
    """The rows that have all of it."""

    @classmethod
    def of(cls, rows: Sequence[Exchange]) -> _Draft:
        """Return what some rows have in common."""
        opening, shots = _recurring_turns(rows)
        turns = [_after(row.turns, opening, frozenset(shots)) for row in rows]
        system = align_sentences([row.system for row in rows])
        user = align_user([each[0][1] if each else "" for each in turns])
        members = [n for n, each in enumerate(turns) if n in system.held and n in user.held and each]
        return cls(rows, shots, opening, turns, system, user, query_hole(user), members)

    def versions(self) -> list[list[int]]:
        """Return the rows of each version; none where what changes is data."""
        keys: dict[int, tuple[str, ...]] = dict.fromkeys(self.members, ())
        for aligned, pivot in ((self.system, None), (self.user, self.pivot)):
            for hole in _open_holes(aligned, pivot):
                values = {number: " ".join(aligned.held[number][hole].split()) for number in self.members}
                if _are_versions(Counter(values.values())):
                    keys = {number: (*key, values[number]) for number, key in keys.items()}
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, key in keys.items():
            groups.setdefault(key, []).append(number)
        return list(groups.values()) if len(groups) > 1 else []

    def template(self, family: int) -> Template:
        """Return the template, its place for the query included."""
        for finer in (True, False):
            system = skeleton_of(self.system, self.members)
            user = skeleton_of(self.user, self.members, self.pivot)
            before, _ = part_query(user)
            if finer:
                system.refine()
                user.refine()
            texts = [(self.rows[number].system, self.turns[number][0][1]) for number in self.members]
            frames, slots, count = fill_frames(system, user, texts)
            if count >= SHARE * len(self.members):
                break
        parts, behind = _parts(*frames, quoted=bool(before))
        opening = [Part((_opening_text(self.opening),))] if self.opening else []
        return Template(
            parts=(*opening, *parts),
            system=frames[0],
            user=frames[1],
            shots=self.shots,
            opening=self.opening,
            slots=slots,
            rows=count,
            family=family,
            behind=behind,
        )


def _parts(system: Frame, user: Frame, *, quoted: bool) -> tuple[list[Part], bool]:
    """Return the parts of the template, and whether the last of them stands behind the query.

    What is only the end of a quotation, or "Answer:", is no part; with `quoted` the quotation's beginning is none.
    """
    at = user.names.index(QUERY)
    head, tail = Part(user.texts[: at + 1], user.names[:at]), Part(user.texts[at + 1 :], user.names[at + 1 :])
    words = " ".join(tail.texts)
    behind = bool(
        tail.names or (re.search(r"\w", words) and not (word_count(words) < LEAST and words.rstrip().endswith(":")))
    )
    if quoted and not behind:
        head = replace(head, texts=(*head.texts[:-1], head.texts[-1].rstrip("\"'`<[( ")))
    parts = [Part(system.texts, system.names), _stripped(head), *([_stripped(tail)] if behind else [])]
    return [part for part in parts if part.names or part.texts[0].strip()], behind


def _stripped(part: Part) -> Part:
    texts = list(part.texts)
    texts[0] = texts[0].lstrip()
    texts[-1] = texts[-1].rstrip()
    return replace(part, texts=tuple(texts))


def _open_holes(aligned: Aligned, pivot: int | None) -> list[int]:
    return [hole for hole, is_open in enumerate(aligned.open) if is_open and hole != pivot]


def _are_versions(values: Counter[str]) -> bool:
    """Tell whether what changes are versions of the prompt, and not data: a date, a name, a passage.

    >>> _are_versions(Counter({"Answer with one word.": 40, "Answer in a single word, always.": 60}))
    True
    >>> _are_versions(Counter({"Today is 2026-05-01.": 40, "Today is 2026-05-02.": 60}))
    False
    """
    return are_few(values) and ("" in values or not all(map(is_data, refined(list(values)).values)))


def _recurring_turns(rows: Sequence[Exchange]) -> tuple[Pair | None, tuple[Pair, ...]]:
    """Return the opening and the shots that recur before the query, the most frequent first."""
    pairs = [pairs_of(row.turns) for row in rows]
    counts = Counter(chain.from_iterable(map(set, pairs)))
    bare = not any(row.system.strip() for row in rows)
    known = {pair for pair, count in counts.items() if _recurs(count, len(rows))}
    leading = [list(takewhile(known.__contains__, each)) for each in pairs]
    firsts = Counter(chain.from_iterable(each[:1] for each in leading))
    opening = next((pair for pair, count in firsts.most_common(1) if bare and count >= SHARE * len(rows)), None)
    found = Counter(chain.from_iterable(leading))
    found.pop(opening or ("", ""), None)
    return opening, tuple(pair for pair, _ in found.most_common())


def _recurs(count: int, rows: int) -> bool:
    """Tell whether a turn with its answer recurs so often that it is a shot and not a conversation that goes on."""
    return rows > 3 and (2 * count >= rows or (count >= 20 and count >= 0.05 * rows))


def _after(turns: tuple[Turn, ...], opening: Pair | None, shots: frozenset[Pair]) -> tuple[Turn, ...]:
    if opening:
        if pairs_of(turns)[:1] != [opening]:
            return ()
        turns = turns[2:]
    for pair in pairs_of(turns):
        if pair not in shots:
            break
        turns = turns[2:]
    return turns


def _opening_text(opening: Pair) -> str:
    """Return the prompt in an opening, with its answer unless that only says that it was understood."""
    asked, answered = opening
    return asked.strip() if word_count(answered) < LABEL else f"{asked.strip()}\n{answered.strip()}"


def shared_by_all(rows: Sequence[Exchange]) -> str:
    """Return the longest beginning that SHARE of the requests have, for a message that no prompt recurs."""
    return shared([row.system or row.first for row in rows], SHARE)
