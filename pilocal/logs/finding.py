"""Finds the prompts that the requests of a log repeat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

from pilocal.logs.alignment import LEAST, SHARE, Aligned, align, align_sentences, nothing_recurs, without_small
from pilocal.logs.exchange import Exchange
from pilocal.logs.families import families, fewest
from pilocal.logs.frame import Frame
from pilocal.logs.template import Pair, Place, Template, pairs_of
from pilocal.logs.units import shared, units_of, word_count
from pilocal.task.chat import Turn

FEW = 10
"""Values up to which what changes may be versions of a prompt; more are data."""

SHORT = 6
"""Words of the longest value that may be data where there are few values."""

LABEL = 8
"""Words of a fixed text between two changing places of a user's turn that is a label of what follows."""

DEEPEST = 6
"""How often a family is divided into versions."""

EXAMPLES = 3

BOUNDARY = re.compile(r"""[:.!?]\s+["'`<\[(]*|\n["'`<\[(]*""")
"""Where a prompt may end inside a line."""

BEGINNING = re.compile(r"""\n|(?<=[.!?])\s|(?<=\s)(?=[A-Z\[(<])|["'`\])>]""")
"""Where it may begin inside a line."""


def find_templates(rows: Sequence[Exchange]) -> list[Template]:
    """Return the templates of some requests, those of the most rows first; none where no prompt recurs."""
    found: list[Template] = []
    for number, members in enumerate(families(rows)):
        if len(members) >= fewest(len(rows)):
            found += _versions([rows[member] for member in members], number, fewest(len(rows)), 0)
    merged: dict[object, Template] = {}
    for each in found:
        key = (each.system.fixed, each.user.fixed, each.opening)
        known = merged.get(key)
        merged[key] = replace(known, rows=known.rows + each.rows) if known else each
    return sorted((each for each in merged.values() if each.text), key=lambda each: -each.rows)


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
        user = _align_user([each[0][1] if each else "" for each in turns])
        members = [n for n, each in enumerate(turns) if n in system.held and n in user.held and each]
        return cls(rows, shots, opening, turns, system, user, _widest(user), members)

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
        before, after = self._around_query()
        user, pivot = self.user, self.pivot
        head = _glued(_part(user, 0, pivot), before)
        tail = _glued(after, _part(user, pivot, len(user.fixed)))
        if not re.search(r"\w", tail) or (
            word_count(tail) < LEAST and tail.endswith(":")
        ):  # a quotation's end, or "Answer:"
            head, tail = head.rstrip("\"'`<[( ") if before else head, ""
        opening = _opening_text(self.opening) if self.opening else ""
        system = _part(self.system, 0, len(self.system.fixed))
        return Template(
            text="\n\n".join(part for part in (opening, system, head, tail) if part),
            system=Frame(self.system.fixed, self.system.open, len(self.system.fixed)),
            user=_frame(user, pivot, before, after),
            shots=self.shots,
            opening=self.opening,
            places=tuple(self._places()),
            rows=len(self.members),
            family=family,
            behind=bool(tail),
        )

    def _around_query(self) -> tuple[str, str]:
        """Return what the line of the query begins and ends with in nearly every row, if that is a prompt."""
        values = [self.user.held[number][self.pivot] for number in self.members]
        if len(set(values)) < 2:
            return "", ""
        before = _prompt_before(values)
        after = _prompt_after([value.removeprefix(before) for value in values])
        quoted = before[-1:] in ('"', "'", "`", "<", "[", "(") and not re.search(r"\w", after)
        return before, after if word_count(after) >= LEAST or (after and quoted) else ""

    def _places(self) -> list[Place]:
        found = []
        for role, aligned, pivot in (("system", self.system, None), ("user", self.user, self.pivot)):
            for hole in _open_holes(aligned, pivot):
                values = Counter(aligned.held[number][hole] for number in self.members)
                known = [value for value, _ in values.most_common() if value]
                begins, ends = _alike(known)
                place = Place(
                    role=role,
                    line=aligned.lines[hole],
                    around=(begins, ends),
                    examples=tuple(known[:EXAMPLES]),
                    distinct=len(values),
                )
                found.append(place)
        return found


def _align_user(texts: Sequence[str]) -> Aligned:
    """Return what the user's turns have in common; nothing where that is a few words, or all of it."""
    found = without_small(align(texts, units_of), LABEL)
    if sum(map(word_count, found.fixed)) < LEAST or not any(found.open):
        return nothing_recurs(texts)
    return found


def _widest(aligned: Aligned) -> int:
    """Return the hole that has the most different text: the query."""
    sizes = [sum(map(len, {held[hole] for held in aligned.held.values()})) for hole in range(len(aligned.open))]
    return max(range(len(sizes)), key=lambda hole: (aligned.open[hole], sizes[hole]))


def _frame(aligned: Aligned, pivot: int, before: str, after: str) -> Frame:
    """Return the frame of an alignment, with what the query's line begins and ends with as fixed texts."""
    more_before, more_after = ([each] if each else [] for each in (before, after))
    fixed = (*aligned.fixed[:pivot], *more_before, *more_after, *aligned.fixed[pivot:])
    closed_before, closed_after = ([False] * len(each) for each in (more_before, more_after))
    is_open = (*aligned.open[:pivot], *closed_before, True, *closed_after, *aligned.open[pivot + 1 :])
    return Frame(fixed, is_open, pivot + len(more_before))


def _prompt_before(values: Sequence[str]) -> str:
    """Return what nearly all texts begin with, up to where a prompt may end."""
    before = shared(values, SHARE)
    ends = [mark.end() for mark in BOUNDARY.finditer(before)]
    before = before[: ends[-1]].strip() if ends else ""
    return before if word_count(before) >= LEAST else ""


def _prompt_after(values: Sequence[str]) -> str:
    """Return what nearly all texts end with, from where a prompt may begin."""
    after = shared([value[::-1] for value in values], SHARE)[::-1]
    start = BEGINNING.search(after)
    return after[start.start() :].strip() if start else ""


def _open_holes(aligned: Aligned, pivot: int | None) -> list[int]:
    return [hole for hole, is_open in enumerate(aligned.open) if is_open and hole != pivot]


def _part(aligned: Aligned, first: int, last: int) -> str:
    """Return the fixed texts from one number to before another, with the spaces that stood between them."""
    text = ""
    for number in range(first, last):
        text += (aligned.joins[number - 1] if number > first else "") + aligned.fixed[number]
    return text


def _glued(one: str, other: str) -> str:
    return "\n".join(part for part in (one, other) if part)


def _alike(values: Sequence[str]) -> tuple[str, str]:
    """Return the whole words that all values begin and end with."""
    begins = shared(values, 1.0)
    begins = begins[: begins.rfind(" ") + 1]
    ends = shared([value[len(begins) :][::-1] for value in values], 1.0)[::-1]
    return begins, ends[ends.find(" ") :] if " " in ends else re.sub(r"\w", "", ends)


def _are_versions(values: Counter[str]) -> bool:
    """Tell whether what changes are versions of the prompt, and not data: a date, a name, a passage.

    >>> _are_versions(Counter({"Answer with one word.": 40, "Answer in a single word, always.": 60}))
    True
    >>> _are_versions(Counter({"Today is 2026-05-01.": 40, "Today is 2026-05-02.": 60}))
    False
    """
    if len(values) > FEW or 3 * len(values) > values.total():
        return False
    if "" in values:
        return True
    begins, ends = _alike(list(values))
    parts = [value[len(begins) : len(value) - len(ends)] for value in values]
    return not (all(map(_is_name, parts)) or (all(map(_is_number, parts)) and len(set(map(_shape, parts))) == 1))


def _is_name(text: str) -> bool:
    """Tell whether a few words look like a name, a language or a day."""
    words = text.split()
    named = [word[:1].isupper() for word in words if word[:1].isalpha()]
    return 0 < len(words) <= SHORT and bool(named) and all(named)


def _is_number(text: str) -> bool:
    """Tell whether a text looks like a date, a time, an identity or an address; a rule may have a number of its own."""
    return text.count(" ") < SHORT and (len(re.findall(r"\d+", text)) > 1 or bool(re.search(r"\d{4}|@|://", text)))


def _shape(text: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", text))


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
