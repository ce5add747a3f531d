"""What texts have in common, unit by unit, and what stands between: linear in their length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pilocal.logs.units import Unit, numbered, units_of, word_count, words_of

SHARE = 0.95
"""The share of rows that have what is called recurring."""

LEAST = 3
"""Words of the shortest part of a sentence that recurs."""

GAP = " ... "
"""What stands in a template's sentence for the words that change."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Fixed texts, and what each text has between them."""

    fixed: tuple[str, ...]
    joins: tuple[str, ...]
    """The white space to put between two fixed texts once what is between them is taken out."""
    open: tuple[bool, ...]
    lines: tuple[int, ...]
    """The line of the reference text on which each hole is."""
    held: dict[int, tuple[str, ...]]
    """What each text that has all of them in order holds in each hole, by its number."""


def align_sentences(texts: Sequence[str]) -> Aligned:
    """Return what at least SHARE of some texts have in common: units, or words where they are of one sentence."""
    found = align(texts, units_of)
    if found.fixed or not all(map(str.strip, texts)):
        return found
    words = without_small(align(texts, words_of), LEAST)
    if sum(map(word_count, words.fixed)) < 2 * LEAST:
        return found
    return replace(words, joins=tuple(GAP for _ in words.joins))


def align(texts: Sequence[str], cut: Callable[[str], tuple[Unit, ...]]) -> Aligned:
    """Return what at least SHARE of some texts have in common, of the units into which they are cut."""
    times = Counter(texts)
    cuts = {text: cut(text) for text in times}
    keys = {text: numbered(units) for text, units in cuts.items()}
    common = _common(keys, times)
    orders = {text: tuple(key for key in found if key in common) for text, found in keys.items()}
    (order, _), *_ = _weighed(orders, times).most_common(1)
    places = {text: _places(units, keys[text], common) for text, units in cuts.items() if orders[text] == order}
    return _aligned(texts, places) or nothing_recurs(texts)


def nothing_recurs(texts: Sequence[str]) -> Aligned:
    """Return the alignment of texts that have nothing in common; empty ones are not in it."""
    return Aligned((), (), (True,), (1,), {number: (text.strip(),) for number, text in enumerate(texts) if text})


def _aligned(texts: Sequence[str], places: Mapping[str, list[Unit]]) -> Aligned | None:
    """Return the alignment of the texts whose recurring units are known; None where none fits the others."""
    gaps = {text: _gaps(text, found) for text, found in places.items()}
    is_open = _open(gaps, Counter(text for text in texts if text in gaps))
    numbers = [number for number, text in enumerate(texts) if text in gaps and _fits(gaps[text], is_open)]
    if not numbers:
        return None
    reference = texts[numbers[0]]
    return _joined(reference, places[reference], is_open, {number: gaps[texts[number]] for number in numbers})


Key = tuple[str, int]


def _weighed(found: Mapping[str, tuple[Key, ...]], times: Counter[str]) -> Counter[tuple[Key, ...]]:
    counts = Counter[tuple[Key, ...]]()
    for text, count in times.items():
        counts[found[text]] += count
    return counts


def _common(keys: Mapping[str, Sequence[Key]], times: Counter[str]) -> set[Key]:
    """Return the units that at least SHARE of the texts have."""
    counts = Counter[Key]()
    for text, count in times.items():
        for key in keys[text]:
            counts[key] += count
    return {key for key, count in counts.items() if count >= SHARE * times.total()}


def _open(gaps: Mapping[str, tuple[str, ...]], times: Counter[str]) -> list[bool]:
    """Return for each gap whether more than a few of the texts have something in it."""
    filled = Counter[int]()
    for text, found in gaps.items():
        filled.update({hole: times[text] for hole, gap in enumerate(found) if gap.strip()})
    holes = len(next(iter(gaps.values())))
    return [filled[hole] > (1 - SHARE) * times.total() for hole in range(holes)]


def _fits(gaps: Sequence[str], is_open: Sequence[bool]) -> bool:
    return all(allowed or not gap.strip() for gap, allowed in zip(gaps, is_open, strict=True))


def _places(units: Sequence[Unit], keys: Sequence[Key], common: set[Key]) -> list[Unit]:
    return [unit for unit, key in zip(units, keys, strict=True) if key in common]


def _gaps(text: str, places: Sequence[Unit]) -> tuple[str, ...]:
    """Return what is before, between and after the places of a text."""
    ends, starts = [0, *(unit.end for unit in places)], [*(unit.start for unit in places), len(text)]
    return tuple(text[end:start] for end, start in zip(ends, starts, strict=True))


def _joined(
    reference: str, places: Sequence[Unit], is_open: Sequence[bool], gaps: dict[int, tuple[str, ...]]
) -> Aligned:
    """Return the alignment with the fixed units that follow each other as one text."""
    fixed, joins, holes = list[str](), list[str](), [0]
    start = 0
    for number in range(1, len(places) + 1):
        if number < len(places) and not is_open[number]:
            continue
        fixed.append(reference[places[start].start : places[number - 1].end])
        holes.append(number)
        if number < len(places):
            joins.append(_join(reference[places[number - 1].end : places[number].start]))
        start = number
    return Aligned(
        fixed=tuple(fixed),
        joins=tuple(joins),
        open=tuple(is_open[hole] for hole in holes),
        lines=tuple(_line(reference, places, hole) for hole in holes),
        held={number: tuple(found[hole].strip() for hole in holes) for number, found in gaps.items()},
    )


def _join(gap: str) -> str:
    return "\n\n" if "\n\n" in gap else "\n" if "\n" in gap else " "


def _line(reference: str, places: Sequence[Unit], hole: int) -> int:
    """Return the line on which the text in a hole begins."""
    start = places[hole - 1].end if hole else 0
    gap = reference[start : places[hole].start if hole < len(places) else len(reference)]
    start += len(gap) - len(gap.lstrip())
    return reference.count("\n", 0, start) + 1


def without_small(found: Aligned, smallest: int) -> Aligned:
    """Return an alignment without the fixed texts of fewer words than that between two open holes.

    They label what changes, so they go with it.
    """
    for number, text in enumerate(found.fixed):
        if found.open[number] and found.open[number + 1] and word_count(text) < smallest:
            return without_small(_without(found, number), smallest)
    return found


def _without(found: Aligned, number: int) -> Aligned:
    def dropped(values: Sequence[str], place: int) -> tuple[str, ...]:
        return (*values[:place], *values[place + 1 :])

    def merge(held: tuple[str, ...]) -> tuple[str, ...]:
        parts = (part for part in (held[number], found.fixed[number], held[number + 1]) if part)
        return (*held[:number], "\n".join(parts), *held[number + 2 :])

    return Aligned(
        fixed=dropped(found.fixed, number),
        joins=dropped(found.joins, min(number, len(found.joins) - 1)),
        open=found.open[:number] + found.open[number + 1 :],
        lines=found.lines[: number + 1] + found.lines[number + 2 :],
        held={row: merge(held) for row, held in found.held.items()},
    )
