"""The settings that suit a base of some size: one table, for `pilocal init` and for the hints of `pilocal check`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf

from pilocal.base.base import Base
from pilocal.errors import PilocalError

BATCH_SIZE = 8
"""Rows per step, as everything here was measured with."""

SHOTS = 2
"""Solved examples in the first stage. None of our comparisons found more of them better, and they cost every stage."""

FINAL = 0.86
"""The last stage's share of the steps: its steps are the cheapest, and what is served is learned there."""

ROUNDED = 50
"""Steps are a multiple of it."""

FAR = 3.0
"""A learning rate that is so many times higher or lower than the recipe's is worth a hint."""

IN_A_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)
"""How the name of a model says how many parameters it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How bases up to a size are trained."""

    up_to: float
    """The most parameters."""
    learning_rate: float
    passes: float
    """How often each training row is seen, within the bounds of `fewest` and `most`."""
    fewest: int
    """Steps of the smallest training."""
    most: int
    """Steps of the largest."""
    known: str
    """Where the rate is from."""

    def steps(self, rows: int) -> int:
        """Return the optimizer steps for so many training rows.

        >>> [recipe_for(2e6).steps(rows) for rows in (30, 1600, 100_000)]
        [200, 600, 1500]
        """
        wanted = round(rows * self.passes / BATCH_SIZE / ROUNDED) * ROUNDED
        return max(self.fewest, min(self.most, wanted))

    def is_far(self, learning_rate: float) -> bool:
        """Tell whether a learning rate is far from the recipe's."""
        return not self.learning_rate / FAR < learning_rate < self.learning_rate * FAR


RECIPES = (
    Recipe(up_to=2e7, learning_rate=2e-3, passes=3, fewest=200, most=1500, known="measured with the starter"),
    Recipe(up_to=3e8, learning_rate=4e-4, passes=2, fewest=200, most=1000, known="measured with SmolLM2-135M"),
    Recipe(up_to=2e9, learning_rate=2e-4, passes=3, fewest=200, most=1500, known="interpolated, not measured"),
    Recipe(up_to=inf, learning_rate=1e-4, passes=5, fewest=200, most=2000, known="as published for 7B and 8B"),
)
"""The table, the smallest bases first; pilocal/base/README.md shows it."""


def recipe_for(parameters: float | None) -> Recipe:
    """Return the recipe for a base of so many parameters; where they are not known, that of the largest."""
    return next(recipe for recipe in RECIPES if (inf if parameters is None else parameters) <= recipe.up_to)


def count_parameters(base: Base) -> int:
    """Return how many numbers a base has, packed ones counted one by one, by what config.json says.

    Raises ModelError for one that is damaged or of a kind that is not supported.
    """
    return base.architecture.parameters(base.config)


def size_of(model: str, base: Base | None) -> float | None:
    """Return the parameters of a base, or what its name says of one that is not here; None where neither is known.

    >>> [size_of(name, None) for name in ("a/Llama-3.1-8B-Instruct-4bit", "a/Qwen3-0.6B", "a/SmolLM2-135M", "a/b")]
    [8000000000.0, 600000000.0, 135000000.0, None]
    """
    if base is not None:
        try:
            return count_parameters(base)
        except (PilocalError, KeyError, TypeError, ValueError):
            return None
    found = IN_A_NAME.search(model)
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6) if found else None
