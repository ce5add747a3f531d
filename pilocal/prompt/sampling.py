"""Answers that are drawn: at a temperature, from a seed, so that the same request gets the same answer again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Choose = Callable[[NDArray[np.float32]], int]
"""Takes the logits (vocabulary,) of the next token and returns the token."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of answers are drawn."""

    temperature: float
    """Divides the logits; above 0."""
    seed: tuple[int, ...]
    """For all answers that are asked for together."""

    @property
    def number(self) -> int:
        """The seed as one number."""
        return int(np.random.SeedSequence(self.seed).generate_state(1)[0])

    def chooser(self, answer: int) -> Choose:
        """Return what draws the tokens of an answer, given its number.

        >>> choose = Sampling(0.5, (1, 2)).chooser(0)
        >>> [choose(np.array([0, 0, 100, 0], dtype=np.float32)) for _ in range(3)]
        [2, 2, 2]
        """
        draw = np.random.default_rng((*self.seed, answer))
        return lambda logits_V: int((logits_V / self.temperature + draw.gumbel(size=logits_V.shape)).argmax())


def likeliest(logits_V: NDArray[np.float32]) -> int:
    """Return the likeliest token."""
    return int(logits_V.argmax())
