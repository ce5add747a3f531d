"""What report.json says of a synthesis: what was made, what was dropped and why, and how far entries are covered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pilocal.synth.queries import SPLITS, TRAIN, Asked, Coverage
from pilocal.synth.records import Labelled
from pilocal.task import Task


def report_of(
    task: Task, coverage: Coverage, answered: Sequence[tuple[Asked, Labelled]], advice: str | None
) -> dict[str, Any]:
    """Return what was made, what was dropped and why, and how many training queries each entry has.

    `advice` says how to train on it.
    """
    kept = [asked for asked, said in answered if said.dropped is None]
    entries = _entry_counts(coverage, kept)
    named = {row["entry"] for row in entries}
    dropped = Counter(said.dropped for _, said in answered)
    del dropped[None]
    return _lengths(task, answered) | {
        "made": {split: dict(Counter(one.origin for one in kept if one.split == split)) for split in SPLITS},
        "per_entry": task.synth.per_entry,
        "advice": advice,
        "dropped": dict(dropped),
        "entries": entries,
        "composed": sum(map(Asked.is_composed, kept)),
        "few_wordings": coverage.few_wordings(kept),
        "short": [row["entry"] for row in entries if row["queries"] < task.synth.per_entry],
        "unnamed": [entry.text for entry in coverage.entries if entry.text not in named],
    }


def _lengths(task: Task, answered: Sequence[tuple[Asked, Labelled]]) -> dict[str, dict[str, int]]:
    """Return how many conversations have how many answers, if there are conversations."""
    if task.synth.turns == 1:
        return {}
    found = Counter(1 + len(said.turns) // 2 for _, said in answered if said.dropped is None)
    return {"answers": {str(count): found[count] for count in sorted(found)}}


def _entry_counts(coverage: Coverage, kept: Sequence[Asked]) -> list[dict[str, Any]]:
    """Return for each entry that queries can name how many do, of the solved examples and of all training queries."""
    counts = Counter(coverage.known)
    for asked in kept:
        counts.update(set(asked.entries) if asked.split == TRAIN else ())
    return [
        {"entry": coverage.entries[number].text, "solved": coverage.known[number], "queries": counts[number]}
        for number in coverage.nameable
    ]
