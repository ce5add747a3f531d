"""compare.json as texts in columns, for compare.md and for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.comparison.slices import TEMPLATE_ONLY

SCORES, TRAINING, SLICES = "scores", "training", "slices"
"""The tables that a terminal shows one below the other, since a single one would be too wide."""

Grid = tuple[list[str], list[list[str]]]
"""A table's head and its rows."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of arms."""

    part: str
    """One of SCORES, TRAINING and SLICES."""
    head: str
    short: str
    """The head in a terminal."""
    cell: Callable[[Mapping[str, Any]], str]
    """Return the text for an arm's entry in compare.json; empty if there is none."""


def columns(table: Mapping[str, Any]) -> list[Column]:
    """Return the columns that a table has beside the arms' names."""
    found = [
        Column(SCORES, table["metric"], "score", lambda row: f"{row['score']:.3f}"),
        Column(SCORES, "95%", "95%", lambda row: between(row["interval"])),
        Column(SCORES, "PI score", "PI", _figure("pi_score", ".3f")),
        Column(SCORES, "prompt tokens", "prompt", _figure("prompt_tokens", ".1f")),
        Column(SCORES, "first token, ms", "first", _figure("ttft_ms", ".1f")),
        Column(SCORES, "answer, ms", "answer", _figure("latency_ms", ".1f")),
        Column(TRAINING, "training tokens", "tokens", _figure("training.tokens", ",.0f")),
        Column(TRAINING, "training, s", "seconds", _figure("training.seconds", ",.0f")),
        Column(TRAINING, "pays after", "pays after", _requests("requests")),
        Column(TRAINING, "against a warm cache", "warm cache", _requests("requests_cached")),
    ]
    if table["prices"] is not None:
        found.append(Column(TRAINING, "in money", "in money", _requests("requests_money")))
    if table["slices"].get(TEMPLATE_ONLY):
        found += [Column(SLICES, f"{name} ({count})", f"{name} ({count})", _slice(name))
                  for name, count in table["slices"].items()]  # fmt: skip
    return found


def cells(table: Mapping[str, Any]) -> Grid:
    """Return every column of every arm, with the heads of compare.md."""
    chosen = columns(table)
    head = ["arm", *(column.head for column in chosen)]
    return head, [[row["arm"], *(column.cell(row) for column in chosen)] for row in table["arms"]]


def narrow_cells(table: Mapping[str, Any]) -> dict[str, Grid]:
    """Return the same cells in tables of at most 80 columns, by part; an arm without a cell there is left out."""
    grids = {}
    for part in (SCORES, TRAINING, SLICES):
        chosen = [column for column in columns(table) if column.part == part]
        lines = [(row["arm"], [column.cell(row) for column in chosen]) for row in table["arms"]]
        if rows := [[arm, *line] for arm, line in lines if any(line)]:
            grids[part] = (["arm", *(column.short for column in chosen)], rows)
    return grids


def curve_cells(table: Mapping[str, Any]) -> Grid:
    """Return the learning curve: a row for each number of examples, a column for each arm."""
    arms = list(dict.fromkeys(point["arm"] for point in table["curve"]))
    at = {(point["arm"], point["examples"]): point for point in table["curve"]}
    rows = []
    for count in dict.fromkeys(point["examples"] for point in table["curve"]):
        points = [at.get((arm, count)) for arm in arms]
        rows.append([str(count), *(scored(point) if point else "" for point in points)])
    return ["examples", *arms], rows


def residue_cells(table: Mapping[str, Any]) -> Grid:
    """Return the score over what is left of the template, a row for each rate."""
    rows = [
        [f"{point['rate']:g}", f"{point['template_tokens']:,}", f"{point['prompt_tokens']:,.1f}", scored(point)]
        for point in table["residue"]
    ]
    return ["tau", "template tokens", "prompt tokens", table["metric"]], rows


def between(pair: Sequence[float]) -> str:
    """Return the bounds of a score.

    >>> between([0.5, 1])
    '0.500 to 1.000'
    """
    return f"{pair[0]:.3f} to {pair[1]:.3f}"


def scored(entry: Mapping[str, Any]) -> str:
    """Return a score with its bounds.

    >>> scored({"score": 0.75, "interval": [0.5, 1]})
    '0.750 (0.500 to 1.000)'
    """
    return f"{entry['score']:.3f} ({between(entry['interval'])})"


def _figure(path: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what formats the number at a path such as "training.tokens"."""

    def cell(row: Mapping[str, Any]) -> str:
        found: Any = row
        for key in path.split("."):
            found = found.get(key) if found is not None else None
        return "" if found is None else format(found, form)

    return cell


def _requests(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what formats one of the break-evens, in requests."""

    def cell(row: Mapping[str, Any]) -> str:
        if "break_even" not in row:
            return ""
        count = row["break_even"][key]
        return "never" if count is None else f"{count:,}"

    return cell


def _slice(name: str) -> Callable[[Mapping[str, Any]], str]:
    """Return what formats the score on one slice of the test set."""

    def cell(row: Mapping[str, Any]) -> str:
        part = row["slices"].get(name)
        return scored(part) if part else ""

    return cell
