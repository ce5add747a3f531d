"""What texts have in common, unit by unit, and what stands between: linear in their length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from pilocal.logs.units import SHARE, Unit, numbered, units_of, word_count, words_of

LEAST = 3
"""Words of the shortest part of a sentence that recurs."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """Fixed texts, and what each text has between them."""

    fixed: tuple[str, ...]
    spaces: tuple[tuple[str, str], ...]
    """The white space before and behind what each hole holds, as most texts have it."""
    open: tuple[bool, ...]
    held: dict[int, tuple[str, ...]]
    """What each text that has all of them in order holds in each hole, by its number."""


def align_sentences(texts: Sequence[str]) -> Aligned:
    """Return what at least SHARE of some texts have in common: units, or words where they are of one sentence."""
    found = align(texts, units_of)
    if found.fixed or not all(map(str.strip, texts)):
        return found
    words = without_small(align(texts, words_of), LEAST)
    return words if sum(map(word_count, words.fixed)) >= 2 * LEAST else found


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
    return Aligned((), (("", ""),), (True,), {number: (text.strip(),) for number, text in enumerate(texts) if text})


def _aligned(texts: Sequence[str], places: Mapping[str, list[Unit]]) -> Aligned | None:
    """Return the alignment of the texts whose recurring units are known; None where none fits the others."""
    gaps = {text: _gaps(text, found) for text, found in places.items()}
    is_open = _open(gaps, Counter(text for text in texts if text in gaps))
    numbers = [number for number, text in enumerate(texts) if text in gaps and _fits(gaps[text], is_open)]
    if not numbers:
        return None
    forms = {text: _form(text, found, gaps[text], is_open) for text, found in places.items()}
    times = Counter(forms[texts[number]] for number in numbers)
    best = max(times, key=lambda form: (form.filled, times[form]))
    return _joined(best, is_open, {number: gaps[texts[number]] for number in numbers})


@dataclass(frozen=True, slots=True)
class _Form:
    """How a text writes its fixed units, to the last space."""

    filled: int
    """How many of the gaps that may hold something do."""
    spaces: tuple[tuple[str, str], ...]
    """The white space before and behind what each gap holds."""
    units: tuple[str, ...]


def _form(text: str, places: Sequence[Unit], gaps: Sequence[str], is_open: Sequence[bool]) -> _Form:
    spaces = []
    for gap in gaps:
        held = gap.strip()
        spaces.append((gap[: gap.index(held)], gap[gap.index(held) + len(held) :]) if held else (gap, ""))
    filled = sum(allowed and bool(gap.strip()) for gap, allowed in zip(gaps, is_open, strict=True))
    return _Form(filled, tuple(spaces), tuple(text[unit.start : unit.end] for unit in places))


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


def _joined(form: _Form, is_open: Sequence[bool], gaps: dict[int, tuple[str, ...]]) -> Aligned:
    """Return the alignment with the fixed units that follow each other as one text."""
    fixed, holes = list[str](), [0]
    for number, unit in enumerate(form.units):
        if number and not is_open[number]:
            fixed[-1] += form.spaces[number][0] + unit
            continue
        fixed.append(unit)
        holes += [number] if number else []
    holes += [len(form.units)] if form.units else []
    return Aligned(
        fixed=tuple(fixed),
        spaces=tuple(form.spaces[hole] for hole in holes),
        open=tuple(is_open[hole] for hole in holes),
        held={number: tuple(found[hole].strip() for hole in holes) for number, found in gaps.items()},
    )


def without_small(found: Aligned, smallest: int, kept: Collection[str] = ()) -> Aligned:
    """Return an alignment without the fixed texts of fewer words than that between two open holes, but for some.

    They label what changes, so they go with it.
    """
    for number, text in enumerate(found.fixed):
        if found.open[number] and found.open[number + 1] and word_count(text) < smallest and text not in kept:
            return without_small(_without(found, number), smallest, kept)
    return found


def _without(found: Aligned, number: int) -> Aligned:
    def merge(held: tuple[str, ...]) -> tuple[str, ...]:
        before, behind = held[number : number + 2]
        text = (before and before + found.spaces[number][1]) + found.fixed[number]
        text += behind and found.spaces[number + 1][0] + behind
        return (*held[:number], text, *held[number + 2 :])

    return Aligned(
        fixed=found.fixed[:number] + found.fixed[number + 1 :],
        spaces=(
            *found.spaces[:number],
            (found.spaces[number][0], found.spaces[number + 1][1]),
            *found.spaces[number + 2 :],
        ),
        open=found.open[:number] + found.open[number + 1 :],
        held={row: merge(held) for row, held in found.held.items()},
    )
