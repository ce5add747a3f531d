"""Twenty answers where the arms differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.evaluate.arms import ARMS, BASE_FULL_PROMPT, BY_NAME, INTERNALIZED, SHIPPED
from pilocal.report.markup import Html, join, missing, section, tag, text
from pilocal.report.record import Record
from pilocal.task.text import counted

SHOWN = 20

LONGEST = 800
"""Characters of a text."""


LEARNED = (BASE_FULL_PROMPT.name, INTERNALIZED.name, SHIPPED.name)
"""Of these the last two are to say what the first says."""


def differences(record: Record) -> Html:
    """Return the answers to queries on which the arms differ; first those where what is served leaves the prompt's."""
    title, answers = "Where the arms differ", record.answers
    if not answers:
        return section(title, missing("No arm has answered yet.", record.command("run")))
    names = [arm.name for arm in ARMS if arm.name in answers[0]]
    parted = [line for line in answers if _differ(line, names)]
    if not parted:
        return section(title, tag("p", f"All arms agree on all {len(answers):,} test queries."))
    served = [line for line in parted if _differ(line, LEARNED)]
    rest = [line for line in parted if not _differ(line, LEARNED)]
    shown = [*_spread(served, SHOWN), *_spread(rest, max(0, SHOWN - len(served)))]
    said = f"The arms differ on {len(parted):,} of {counted(len(answers), 'test query', 'test queries')}."
    shows = f"{counted(len(shown), 'query is', 'queries are')} shown."
    items = tag("ol", join(*(_item(line, names) for line in shown)), kind="answers")
    return section(title, tag("p", f"{said} {_kept(len(served))} {shows}"), items)


def _kept(served: int) -> str:
    """Return on how many queries the adapter leaves what the base says with the full prompt."""
    if not served:
        return "The adapter says on all of them what the base says with the full prompt."
    said = f"On {served:,} of them the adapter says something else than the base with the full prompt"
    return f"{said}: these come first."


def _differ(line: Mapping[str, Any], names: Sequence[str]) -> bool:
    return len({line[name] for name in names}) > 1


def _spread(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Return so many lines from all over, or all of them."""
    count = min(count, len(lines))
    return [lines[number * len(lines) // count] for number in range(count)]


def _item(line: Mapping[str, Any], names: Sequence[str]) -> Html:
    """Return a query with its reference, and each answer once, with the arms that gave it."""
    by_answer: dict[str, list[str]] = {}
    for name in names:
        by_answer.setdefault(line[name], []).append(BY_NAME[name].title)
    pairs = [tag("dt", "reference"), tag("dd", _said(line["answer"]), dir="auto")]
    for answer, arms in by_answer.items():
        same = answer.strip() == line["answer"].strip()
        marks = [tag("span", "equals the reference", kind="good")] if same else []
        pairs += [tag("dt", *(tag("span", arm) for arm in arms), *marks), tag("dd", _said(answer), dir="auto")]
    query = tag("p", text(line["query"], LONGEST), kind="query", dir="auto")
    return tag("li", query, tag("dl", join(*pairs), kind="said"))


def _said(answer: str) -> Html:
    return text(answer, LONGEST) if answer else tag("span", "(nothing)", kind="soft")
