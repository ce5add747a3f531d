"""The template, entry by entry: what each is worth to the base, and how well it was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.evaluate.arms import BASE_FULL_PROMPT, INTERNALIZED
from pilocal.report.figures import score
from pilocal.report.markup import Html, Long, missing, section, table, tag, text
from pilocal.report.pictures import picture_of
from pilocal.report.record import Record
from pilocal.task.text import counted

LONGEST = 160
"""Characters of an entry that are shown."""

ROWS = 300
"""Entries in the table; of more, those that were learned worst and those that are worth most."""

HEAD = ("entry", "worth, nats", "training queries", "test requests", "score with the full prompt", "score internalized")


def entries(record: Record) -> Html:
    """Return the census and the scores by entry in one table, with their pictures."""
    title = "The template, entry by entry"
    scored, census = record.metrics.get("entries", ()), record.census
    parts = [_learned(scored)] if scored else []
    if census:
        parts.append(_worth(census))
        caption = "What each entry of the template is worth to the base."
        parts.append(picture_of(record.run.census.with_suffix(".svg"), caption, name="census"))
    caption = "Scores of the test requests that need each entry."
    parts.append(picture_of(record.run.entries_picture, caption, name="entries", rows=scored))
    rows = _rows(scored, census)
    if rows:
        head, shown = _filled(HEAD, [_row(*each) for each in rows[:ROWS]])
        parts.append(table("Entries of the template; an empty cell was not measured", head, shown, tall=True))
        if len(rows) > ROWS:
            parts.append(tag("p", f"{len(rows) - ROWS:,} more are in metrics.json and census.json.", kind="note"))
    if not record.metrics:
        parts.append(missing("Nobody knows yet which entries were learned.", record.command("run")))
    elif not scored:
        parts.append(tag("p", "No test request names an entry, so there is no score by entry.", kind="note"))
    if not census:
        parts.append(missing("There is no census of what each entry is worth.", record.command("check", "--gap")))
    return section(title, *parts)


def _learned(scored: list[Mapping[str, Any]]) -> Html:
    asked = [line for line in scored if line["entry"] is not None and line["requests"]]
    good = [line for line in asked if line[INTERNALIZED.name] >= line[BASE_FULL_PROMPT.name]]
    count = counted(len(asked), "entry", "entries")
    return tag("p", f"Of {count} that test requests need, {len(good):,} score as well without the prompt as with it.")


def _worth(census: Mapping[str, Any]) -> Html:
    said = f"The answers cost {census['full']:.2f} nats per token with the prompt and {census['bare']:.2f} without."
    untouched = [entry for entry in census["entries"] if entry["queries"] == 0]
    if untouched:
        names = f"{counted(len(untouched), 'entry is', 'entries are')} in no training query"
        said += f" {names}, such as \u201c{untouched[0]['entry'][:LONGEST]}\u201d; `pilocal synth` makes some."
    return tag("p", said)


def _filled(head: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Return a table without the columns that are empty."""
    kept = [number for number in range(len(head)) if any(row[number] for row in rows)]
    return [head[number] for number in kept], [[row[number] for number in kept] for row in rows]


Row = tuple[str | None, Mapping[str, Any], Mapping[str, Any]]


def _rows(scored: list[Mapping[str, Any]], census: Mapping[str, Any]) -> list[Row]:
    """Return each entry with what either knows of it, those that were learned worst and are worth most first."""
    worth = {entry["entry"]: entry for entry in census.get("entries", ())}
    learned = {line["entry"]: line for line in scored}
    found: list[Row] = [(name, worth.get(name, {}), learned.get(name, {})) for name in {**worth, **learned}]
    return sorted(found, key=_lost) if len(found) > ROWS else found


def _lost(row: Row) -> tuple[float, float]:
    _, worth, learned = row
    with_prompt, without = (learned.get(arm.name) for arm in (BASE_FULL_PROMPT, INTERNALIZED))
    lost = 0.0 if with_prompt is None or without is None else with_prompt - without
    return -lost, -abs(worth.get("nats", 0.0))


def _row(name: str | None, worth: Mapping[str, Any], learned: Mapping[str, Any]) -> tuple[object, ...]:
    nats, requests = worth.get("nats"), learned.get("requests")
    return (
        Long(text("no entry: requests that need none" if name is None else name, LONGEST)),
        "" if nats is None else f"{nats:+.2f}",
        "" if worth.get("queries") is None else f"{worth['queries']:,}",
        "" if requests is None else f"{requests:,}",
        *(score(learned.get(arm.name)) for arm in (BASE_FULL_PROMPT, INTERNALIZED)),
    )
