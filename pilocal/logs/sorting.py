"""The second pass over logs: each row becomes a record, or is left out with its reason."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import IO, Any

from pilocal.logs.exchange import (
    CONTAINED,
    CONTRADICTING,
    NO_TEMPLATE,
    OFFERED,
    OTHER_TEMPLATE,
    OVER_LIMIT,
    REPEATED,
    VARIANT,
    Exchange,
    LeftOut,
)
from pilocal.logs.ledger import Ledger
from pilocal.logs.near import NearDuplicates
from pilocal.logs.reading import read
from pilocal.logs.sensitive import redacted, seen_in
from pilocal.logs.survey import Survey
from pilocal.logs.template import Cut, Template
from pilocal.progress import Progress
from pilocal.task.chat import Turn
from pilocal.task.json_lines import Line
from pilocal.task.slots import KEY as SLOTS
from pilocal.task.slots import stated

WHOLE = 1 << 64

CONTEXT = 40
"""Characters before a slot that may tell that its value is a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sieve:
    """Which rows are wanted."""

    template: int
    """The number of the template, counted from 0."""
    variants: bool = False
    """Whether rows of its variants are taken, too."""
    redact: bool = False
    most: int = 100_000
    """The most rows that are kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a row whose record is in the spool."""

    where: Line
    asked: bytes
    """The hash of all that is asked, earlier turns included."""
    answer: bytes
    begun: tuple[bytes, ...]
    """The hashes of the conversations, with their answers, that this one goes on from."""
    tokens: int
    """Of the query, the answer and earlier turns."""
    remarks: tuple[str, ...]
    """What was seen in it."""

    @property
    def said(self) -> bytes:
        """The hash of the whole conversation."""
        return _hash(self.asked, self.answer)


@dataclass(slots=True)
class Sorter:
    """Writes the records of rows that fit into a spool, and remembers a few numbers of each."""

    survey: Survey
    sieve: Sieve
    ledger: Ledger
    spool: IO[str]
    count_tokens: Callable[[str], int]
    rows: list[Kept] = field(default_factory=list)
    near: NearDuplicates = field(default_factory=NearDuplicates)

    def sort(self, progress: Progress) -> None:
        """Read all rows once more."""
        for where, row in read(self.survey.files, self.survey.columns, progress, "sorting the rows"):
            if isinstance(row, LeftOut):
                self.ledger.leave_out(where, row.reason, row.detail)
                continue
            try:
                cut = self._cut(row)
                self._keep(row, cut)
            except LeftOut as reason:
                self.ledger.leave_out(where, reason.reason, reason.detail)

    @property
    def _limit(self) -> int:
        """The hash below which rows are kept, so that there are not too many of them."""
        chosen = self.sieve.template
        taken = [chosen, *(self.survey.variants(chosen) if self.sieve.variants else ())]
        share = sum(self.survey.templates[number].rows for number in taken) / self.survey.looked_at
        return int(self.sieve.most / max(1, self.survey.rows * share) * WHOLE)

    def _cut(self, row: Exchange) -> Cut:
        """Return a row without the template; raises LeftOut for one without it."""
        templates, chosen = self.survey.templates, self.sieve.template
        if cut := templates[chosen].cut(row):
            return cut
        variants = self.survey.variants(chosen)
        order = (*variants, *(n for n in range(len(templates)) if n != chosen and n not in variants))
        for number in order:
            if cut := _cut_or_none(templates[number], row):
                if self.sieve.variants and number in variants:
                    return self._variant(cut, number)
                kind = "a variant, " if number in variants else ""
                raise LeftOut(OTHER_TEMPLATE, f"{kind}template {number + 1}: {templates[chosen].unlike(row)}")
        raise LeftOut(NO_TEMPLATE, templates[chosen].unlike(row))

    def _variant(self, cut: Cut, number: int) -> Cut:
        """Return a variant's row with the slots of the template in its order; raises LeftOut where it has others."""
        names = [slot.name for slot in self.survey.templates[self.sieve.template].slots]
        if set(names) != cut.slots.keys():
            unlike = ", ".join(sorted(set(names) ^ cut.slots.keys()))
            raise LeftOut(OTHER_TEMPLATE, f"a variant, template {number + 1}, of other slots: {unlike}")
        return replace(cut, slots={name: cut.slots[name] for name in names}, unlike=VARIANT)

    def _keep(self, row: Exchange, cut: Cut) -> None:
        clean = redacted if self.sieve.redact else str
        turns = tuple((role, clean(text)) for role, text in cut.turns)
        slots = {name: self._clean_value(name, value) for name, value in cut.slots.items()}
        answer = clean(row.answer)
        asked = _hash(*slots.values(), *(text.strip() for _, text in turns))
        if int.from_bytes(asked[:8]) >= self._limit:
            raise LeftOut(OVER_LIMIT, "--rows")
        begun = tuple(
            _hash(_hash(*slots.values(), *_texts(turns[:end])), _hash(turns[end][1].strip()))
            for end in range(1, len(turns), 2)
        )
        tokens = self.count_tokens("\n".join([answer, stated(slots), *(text for _, text in turns)]))
        self.rows.append(Kept(row.where, asked, _hash(answer.strip()), begun, tokens, self._remarks(row, cut)))
        self.near.add(cut.turns[0][1] if len(cut.turns) > 1 else cut.turns[-1][1])
        self.spool.write(json.dumps(record_of(turns, answer, row.where, slots), ensure_ascii=False) + "\n")

    def _remarks(self, row: Exchange, cut: Cut) -> tuple[str, ...]:
        """Return what is to be said of a row that is kept."""
        values = [self._before(name) + value for name, value in cut.slots.items()]
        found = seen_in("\n".join([row.answer, *values, *(text for _, text in cut.turns)]))
        return (*found, *([OFFERED] if row.offered_tools else []), *([cut.unlike] if cut.unlike else []))

    def _before(self, name: str) -> str:
        return self.survey.templates[self.sieve.template].before(name)[-CONTEXT:]

    def _clean_value(self, name: str, value: str) -> str:
        """Return a slot's value as it is kept; the words before it tell a password."""
        if not self.sieve.redact:
            return value
        before = self._before(name)
        whole = redacted(before + value)
        return whole.removeprefix(before) if whole.startswith(before) else redacted(value)


def _cut_or_none(template: Template, row: Exchange) -> Cut | None:
    try:
        return template.cut(row)
    except LeftOut:
        return None


def _texts(turns: Sequence[Turn]) -> Iterator[str]:
    return (text.strip() for _, text in turns)


def _hash(*parts: str | bytes) -> bytes:
    found = blake2b(digest_size=12)
    for part in parts:
        data = part.encode("utf-8", "replace") if isinstance(part, str) else part
        found.update(len(data).to_bytes(8) + data)
    return found.digest()


def record_of(
    turns: Sequence[Turn], answer: str, where: Line | None, slots: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a record of a task, with the values of its slots and where it comes from."""
    more: dict[str, Any] = {SLOTS: dict(slots)} if slots else {}
    more |= {"source": f"{where.path.name}:{where.number}"} if where else {}
    if len(turns) == 1:
        return {"query": turns[0][1], "answer": answer} | more
    messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", answer))]
    return {"messages": messages} | more


def unwanted(rows: Sequence[Kept]) -> dict[int, tuple[str, str]]:
    """Return why rows are left out that other rows make superfluous or contradict, by their numbers.

    Of a query's answers the most frequent is kept, of equally frequent ones that of the last row.
    """
    answers: defaultdict[bytes, Counter[bytes]] = defaultdict(Counter)
    last: dict[tuple[bytes, bytes], int] = {}
    for number, row in enumerate(rows):
        answers[row.asked][row.answer] += 1
        last[row.asked, row.answer] = number
    best = {
        asked: max(found, key=lambda answer: (found[answer], last[asked, answer])) for asked, found in answers.items()
    }
    inside = {begun for row in rows for begun in row.begun}
    kept: dict[bytes, Line] = {}
    found: dict[int, tuple[str, str]] = {}
    for number, row in enumerate(rows):
        if row.said in inside:
            found[number] = (CONTAINED, "")
        elif row.answer != best[row.asked]:
            found[number] = (CONTRADICTING, f"{rows[last[row.asked, best[row.asked]]].where} has another")
        elif row.asked in kept:
            found[number] = (REPEATED, f"of {kept[row.asked]}")
        else:
            kept[row.asked] = row.where
    return found
