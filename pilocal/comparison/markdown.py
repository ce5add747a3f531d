"""compare.md: the whole table, the learning curve, the score over what is left of the template, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilocal.comparison.columns import cells, curve_cells, residue_cells
from pilocal.comparison.picture import CURVE, RESIDUE, STRENGTHS
from pilocal.training.backend import TORCH


def design_line(table: Mapping[str, Any]) -> str:
    """Return a line that says what was compared."""
    seeds = ", ".join(map(str, table["seeds"]))
    how = " in PyTorch" if table.get("backend") == TORCH else ""
    return f"{table['n']} test queries, seeds {seeds}, {table['steps']} optimizer steps{how}"


def markdown(table: Mapping[str, Any]) -> str:
    """Return compare.md."""
    parts = [design_line(table), _lay_out(*cells(table))]
    if table["curve"]:
        parts += ["Score over the number of training examples:", _lay_out(*curve_cells(table))]
        parts.append(f"![The score of each arm over the number of training examples]({CURVE})")
    if table.get("strengths"):
        parts.append(f"![The score over the strength of each schedule's adapter]({STRENGTHS})")
    if table["residue"]:
        parts += [f"Score of {table['residue'][0]['arm']} over what is left of the template:"]
        parts += [_lay_out(*residue_cells(table)), f"![The score over the tokens of the prompt]({RESIDUE})"]
    return "\n\n".join(parts) + "\n"


def _lay_out(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
