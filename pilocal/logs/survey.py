"""The first pass over logs: which prompts recur in them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from pilocal.errors import InputError
from pilocal.logs.exchange import Exchange, LeftOut
from pilocal.logs.families import FEWEST
from pilocal.logs.finding import find_templates, shared_by_all
from pilocal.logs.reading import read
from pilocal.logs.sensitive import seen_in
from pilocal.logs.sources import files_of
from pilocal.logs.template import Template
from pilocal.logs.units import word_count
from pilocal.progress import Progress, silent

SAMPLE = 2000
"""Rows that are looked at for what recurs, drawn evenly from all."""

SAMPLE_BYTES = 1 << 26

PLACES = 5
"""Slots of a prompt that are told."""

SMALL = 12
"""Words from which a prompt is worth internalizing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is known of some logs."""

    files: tuple[Path, ...]
    columns: Mapping[str, str]
    rows: int
    """Those that can be read."""
    looked_at: int
    """How many of them were looked at for what recurs."""
    templates: tuple[Template, ...]
    """Those of the most rows first."""
    sensitive: Mapping[str, int]
    """How many of the rows that were looked at hold secrets and addresses, by kind."""

    def variants(self, number: int) -> tuple[int, ...]:
        """Return the other templates, counted from 0, of which one is a variant."""
        family = self.templates[number].family
        return tuple(n for n, each in enumerate(self.templates) if n != number and each.family == family)

    def warnings(self, number: int, *, variants: bool = False) -> Iterator[str]:
        """Yield what is odd about one of the templates, counted from 0; `variants` are taken, too, or not."""
        template = self.templates[number]
        share = template.rows / self.looked_at
        yield from _about_slots(template)
        if template.behind:
            yield (
                "the template, or a part of it, stands behind the query; the server takes it out of old requests only "
                "where it stands in front, so send the bare query"
            )
        if template.shots:
            yield f"{len(template.shots)} solved examples recur before the query; they go into train.jsonl"
        if word_count(template.words) < SMALL:
            yield f"the template has {word_count(template.words)} words; there is little to internalize"
        if others := self.variants(number):
            of_variants = sum(self.templates[n].rows for n in others) / self.looked_at
            yield f"another {of_variants:.0%} of the rows have variants of the template; " + (
                "the server takes only the template itself out of old requests, so send the bare query"
                if variants
                else "--variants takes them, too"
            )
        if share < 0.5:
            yield f"only {share:.0%} of the rows have the template"


def _about_slots(template: Template) -> Iterator[str]:
    """Yield what changes inside a template, and what of it cannot be told apart."""
    if template.slots:
        what = "; ".join(slot.said for slot in template.slots[:PLACES])
        more = len(template.slots) - PLACES
        what += f"; and {more} more" if more > 0 else ""
        yield f"the prompt is not the same in every request; what changes is a slot: {what}"
    for slot in template.slots:
        if slot.beside:
            what = "several places side by side, and no word parts them"
            yield f"{{{{{slot.name}}}}} is {what}: where one ends is not clear, so they are one slot"


@dataclass(slots=True)
class _Sample:
    """Rows drawn evenly, the same ones at every call: those of the smallest hashes."""

    kept: list[tuple[int, int, Exchange]] = field(default_factory=list)
    bytes: int = 0

    def add(self, row: Exchange, number: int) -> None:
        drawn = int.from_bytes(blake2b(str(number).encode(), digest_size=8).digest())
        heapq.heappush(self.kept, (-drawn, number, row))
        self.bytes += _bytes(row)
        while len(self.kept) > SAMPLE or (self.bytes > SAMPLE_BYTES and len(self.kept) > 1):
            self.bytes -= _bytes(heapq.heappop(self.kept)[2])

    @property
    def rows(self) -> list[Exchange]:
        return [row for _, _, row in sorted(self.kept, key=lambda each: each[1])]


def _bytes(row: Exchange) -> int:
    return len(row.system) + len(row.answer) + sum(len(text) for _, text in row.turns)


def survey(paths: Sequence[Path], columns: Mapping[str, str], progress: Progress = silent) -> Survey:
    """Return which prompts recur in some logs.

    Raises InputError for a file that cannot be used, and where there is one row or no prompt recurs.
    """
    files = files_of(paths)
    sample, count = _Sample(), 0
    reasons: Counter[str] = Counter()
    first: tuple[object, LeftOut] | None = None
    for where, row in read(files, columns, progress, "reading the logs"):
        if isinstance(row, LeftOut):
            reasons[row.reason] += 1
            first = first or (where, row)
        else:
            count += 1
            sample.add(row, count)
    if not count:
        assert first is not None
        place, unfit = first
        more = f" ({unfit.detail})" if unfit.detail else ""
        what = f"none of {reasons.total()} rows can be used; this one: {unfit.reason}{more}"
        raise InputError(place, what, fix="name the columns with --columns query=NAME,answer=NAME, or another file")
    rows = sample.rows
    if count < FEWEST:
        fix = "give a log of many requests, or the prompt alone with --from-prompt"
        rows_there = count + reasons.total()
        what = "one row" if rows_there == 1 else f"{count} of {rows_there} rows can be used"
        raise InputError(files[0], f"{what}: what recurs shows in several", fix=fix)
    templates = find_templates(rows)
    if not templates:
        raise _nothing_recurs(files, rows)
    seen = Counter(kind for row in rows for kind in seen_in("\n".join([row.answer, *(text for _, text in row.turns)])))
    return Survey(
        files=files,
        columns=columns,
        rows=count,
        looked_at=len(rows),
        templates=tuple(templates),
        sensitive=seen,
    )


def _nothing_recurs(files: Sequence[Path], rows: Sequence[Exchange]) -> InputError:
    """Return what to say where no prompt recurs, and how much does."""
    begun = shared_by_all(rows)
    what = f"no prompt recurs in its {len(rows)} rows: 95% of them share a beginning of {len(begun)} characters"
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    fix = "log the whole prompts, or give the prompt alone with --from-prompt"
    return InputError(where, what, got=begun or None, fix=fix)
