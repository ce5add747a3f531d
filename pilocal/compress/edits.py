"""What has changed between two versions of a template: entries that were changed, added or removed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pilocal.compress.entries import Entry, read_entries, words_of

ALIKE = 0.5
"""Two entries that share this part of their words are one that was changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry, as it was and as it is."""

    before: Entry | None
    """None where it was added."""
    after: Entry | None
    """None where it was removed."""

    @property
    def kind(self) -> str:
        """One of "changed", "added" and "removed"."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"

    def __str__(self) -> str:
        texts = [entry.text for entry in (self.before, self.after) if entry is not None]
        return f"{self.kind}: {' -> '.join(texts)}"


def find_changes(before: str, after: str) -> list[Change]:
    r"""Return the entries that differ between two versions of a template, those of the new one first, in its order.

    An entry that stands elsewhere, or in other white space, is the same.

    >>> found = find_changes("Codes.\n- lamp NIZ\n- door VOL", "Codes.\n- door VOL\n- lamp MIP\n- fan VER KEL")
    >>> [str(change) for change in found]
    ['changed: lamp NIZ -> lamp MIP', 'added: fan VER KEL']
    """
    entries = [read_entries(template) for template in (before, after)]
    same = Counter(map(_key, entries[0])) & Counter(map(_key, entries[1]))
    old, new = (_others(some, same) for some in entries)
    former = _pair(old, new)
    found = [Change(former.get(entry.number), entry) for entry in new]
    paired = {entry.number for entry in former.values()}
    return found + [Change(entry, None) for entry in old if entry.number not in paired]


def _others(entries: list[Entry], same: Counter[str]) -> list[Entry]:
    """Return the entries beside those that both versions have, of which there may be several alike."""
    left, found = Counter(same), []
    for entry in entries:
        if left[_key(entry)]:
            left[_key(entry)] -= 1
        else:
            found.append(entry)
    return found


def _pair(old: list[Entry], new: list[Entry]) -> dict[int, Entry]:
    """Return for entries of the new version, by number, what they were; the most alike first."""
    words = {id(entry): Counter(word.lower() for word in words_of(entry.text)) for entry in (*old, *new)}

    def likeness(a: Entry, b: Entry) -> float:
        ours, theirs = words[id(a)], words[id(b)]
        return 2 * (ours & theirs).total() / max(1, ours.total() + theirs.total())

    pairs = sorted((-likeness(a, b), b.number, a.number, a) for a in old for b in new if likeness(a, b) >= ALIKE)
    found: dict[int, Entry] = {}
    taken: set[int] = set()
    for _, number, former, entry in pairs:
        if number not in found and former not in taken:
            found[number] = entry
            taken.add(former)
    return found


def _key(entry: Entry) -> str:
    return " ".join(entry.text.split())
