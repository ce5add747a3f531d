"""How sure a model was of an answer: the mean log-probability of its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Confidence:
    """Adds up an answer's tokens as they are chosen, its end token included."""

    nats: float = 0.0
    """The sum of their log-probabilities, by the model's own logits: no temperature, penalty or grammar changes it."""
    tokens: int = 0

    def add(self, token: int, logits_V: NDArray[np.float32]) -> None:
        """Take the next token, and the logits that it was chosen from.

        >>> confidence = Confidence()
        >>> for token in (0, 1):
        ...     confidence.add(token, np.array([0, 0, -1000], dtype=np.float32))
        >>> round(confidence.mean, 4)
        -0.6931
        """
        highest = float(logits_V.max())
        total = float(np.exp(logits_V - highest).sum(dtype=np.float64))
        self.nats += float(logits_V[token]) - highest - math.log(total)
        self.tokens += 1

    @property
    def mean(self) -> float | None:
        """Nats per token, at most 0; None where no token was chosen."""
        return self.nats / self.tokens if self.tokens else None
