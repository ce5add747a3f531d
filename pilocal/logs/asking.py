"""Where in a user's turn the query is, and which of what stands beside it belongs to the prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pilocal.logs.alignment import LEAST, Aligned, align, nothing_recurs, without_small
from pilocal.logs.kinds import are_names, kind_of
from pilocal.logs.naming import label_of
from pilocal.logs.skeleton import Skeleton, aligned_by, labelled, refined
from pilocal.logs.units import SHARE, most_have, shared, units_of, word_count
from pilocal.task.slots import QUERY as ASKED

LABEL = 8
"""Words of a fixed text between two changing places of a user's turn that is a label of what follows."""

MOST_DATES = 4
"""Lines with a date, a time or the like that are looked for before the query."""

BOUNDARY = re.compile(r"""[:.!?]\s+["'`<\[(]*|\n["'`<\[(]*""")
"""Where a prompt may end inside a line."""

BEGINNING = re.compile(r"""\n|(?<=[.!?])\s|(?<=\s)(?=[A-Z\[(<])|["'`\])>]""")
"""Where it may begin inside a line."""

FOUND = re.compile(
    r"(?:.*_)?(?:contexts?|passages?|documents?|docs|sources?|excerpts?|snippets?|knowledge|results?|references?|facts"
    r"|background|articles?|chunks?|memory|memories|evidence|kontext|quellen|dokumente|contexte|contexto)(?:_.*)?"
)
"""Labels of what was retrieved."""

ASKING = re.compile(r"\b(?:question|query|request|message|input|asks|frage)\b", re.IGNORECASE)
"""Words of a line that announces what is asked."""

ABOUT = re.compile(
    r"(?:.*_)?(?:user|username|name|customer|client|company|locale|language|lang|country|city|timezone|zone|date|today"
    r"|time|now|datum|sprache)"
)
"""Labels of what a program knows about whoever asks, and when."""


def align_user(texts: Sequence[str]) -> Aligned:
    """Return what the user's turns have in common; nothing where that is a few words, or all of it."""
    found = align(texts, units_of)
    kept = [bool(number and _is_passages(found.fixed[number - 1])) for number in range(len(found.fixed))]
    found = without_small(found, LABEL, frozenset(text for text, keep in zip(found.fixed, kept, strict=True) if keep))
    if sum(map(word_count, found.fixed)) < LEAST or not any(found.open):
        return nothing_recurs(texts)
    return found


def query_hole(aligned: Aligned) -> int:
    """Return the hole that is the query: the one of the most different text that is not called a passage."""
    sizes = [sum(map(len, {held[hole] for held in aligned.held.values()})) for hole in range(len(aligned.open))]
    before = ["", *aligned.fixed]
    order = [(aligned.open[hole] and size > 0, _asks(before[hole]), size) for hole, size in enumerate(sizes)]
    return order.index(max(order))


def part_query(found: Skeleton) -> tuple[str, str]:
    """Narrow the query of a user's turn to what is asked; what is before and behind it becomes text and slots.

    Returns what its line begins and ends with in nearly every row, if that is a prompt.
    """
    assert found.query is not None
    before, after = _around(found.values[found.query])
    if before or after:
        rest = [value.removeprefix(before).removesuffix(after).strip() for value in found.values[found.query]]
        found.put(found.query, Skeleton([before, after], [rest], query=0))
    labels = _labelled(found.texts[found.query], found.values[found.query])
    if labels:
        found.put(found.query, labels)
    if word_count(found.texts[found.query]) >= LEAST:
        for _ in range(MOST_DATES):
            if not (dated := _dated(found.values[found.query])):
                break
            found.put(found.query, dated)
    return before, after


def _around(values: Sequence[str]) -> tuple[str, str]:
    """Return what the line of the query begins and ends with in nearly every row, if that is a prompt."""
    if len(set(values)) < 2:
        return "", ""
    before = _prompt_before(values)
    after = _prompt_after([value.removeprefix(before) for value in values])
    quoted = before[-1:] in ('"', "'", "`", "<", "[", "(") and not re.search(r"\w", after)
    return before, after if word_count(after) >= LEAST or (after and quoted) else ""


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


def _labelled(before: str, values: Sequence[str]) -> Skeleton | None:
    """Return queries parted at labels such as "Context:" and "Question:"; None where they are one, such as a form.

    All but one must be what was retrieved, or what is known about whoever asks.
    """
    found = aligned_by(values, labelled)
    if found is None or len(found.values) < 2:
        return None
    texts = [before + found.texts[0], *found.texts[1:]]
    others = [number for number, text in enumerate(texts[:-1]) if not _is_beside(text, found.values[number])]
    asking = [
        number for number in range(len(found.values)) if ASKED.fullmatch(label_of(texts[number]).rpartition("_")[2])
    ]
    if len(asking) == 1 and others in ([], asking):
        others = asking
    if len(others) != 1 or not (word_count(before) >= LEAST or any(map(_is_passages, texts))):
        return None
    found.query = others[0]
    return found


def _asks(before: str) -> int:
    """Return 0 for a hole behind a text that announces passages, 2 for one that announces a question, else 1."""
    asks = bool(ASKING.search(before.rstrip().rpartition("\n")[2]))
    return 1 + asks - _is_passages(before)


def _is_passages(before: str) -> bool:
    return bool(FOUND.fullmatch(label_of(before)))


def _is_beside(before: str, values: Sequence[str]) -> bool:
    """Tell whether what stands behind a text is no query, but found or known beside it."""
    known = ABOUT.fullmatch(label_of(before)) and (kind_of(values) or are_names(values))
    return _is_passages(before) or bool(known)


def _dated(values: Sequence[str]) -> Skeleton | None:
    """Return queries without a first line or sentence that tells the date, the time or the like; None without such."""
    cuts = [(value, units[0].end, units[1].start) for value in values if len(units := units_of(value)) > 1]
    if len(cuts) < SHARE * len(values):
        return None
    found = refined([value[:end] for value, end, _ in cuts])
    spaces = [value[end:start] for value, end, start in cuts]
    parted = re.search(r"[^\w\s]$", found.texts[-1]) or most_have(spaces, lambda space: "\n" in space)
    if not parted or not re.search(r"\w", found.texts[0]) or not all(map(_is_told, found.texts, found.values)):
        return None
    ((space, _),) = Counter(spaces).most_common(1)
    rests = [value[start:] for value, _, start in cuts]
    return Skeleton([*found.texts[:-1], found.texts[-1] + space, ""], [*found.values, rests], query=len(found.values))


def _is_told(before: str, values: Sequence[str]) -> bool:
    return bool(kind_of(values)) or _is_beside(before, values)
