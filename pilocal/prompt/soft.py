"""What a teacher says about the completion tokens of a row: its likeliest tokens, and the rest in one bucket."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Soft:
    """A teacher's probabilities of the C completion tokens of a row, as logarithms to the base e."""

    ids_CK: NDArray[np.int32]
    """The K likeliest tokens at each place."""
    log_probs_CK: NDArray[np.float32]
    """Theirs."""
    tail_C: NDArray[np.float32]
    """That of all other tokens together; -inf where there are none."""
    reference: bool = True
    """Whether the completion is a reference answer, whose cross-entropy may have a weight; else it is what a model
    said."""


def soften(log_probs_CV: NDArray[np.float32], count: int) -> Soft:
    """Return the `count` likeliest tokens of each place, or all where there are fewer, the likeliest first.

    >>> found = soften(np.log(np.array([[0.1, 0.5, 0.15, 0.25]], dtype=np.float32)), 2)
    >>> found.ids_CK.tolist(), np.exp(found.tail_C).round(3).tolist()
    ([[1, 3]], [0.25])
    """
    wide = log_probs_CV.astype(np.float64)
    order_CV = np.argsort(-wide, axis=-1, kind="stable")
    ids_CK, rest_CR = order_CV[:, :count], order_CV[:, count:]
    with np.errstate(divide="ignore"):
        tail_C = np.log(np.exp(np.take_along_axis(wide, rest_CR, -1)).sum(-1))
    return Soft(
        ids_CK.astype(np.int32),
        np.take_along_axis(wide, ids_CK, -1).astype(np.float32),
        tail_C.astype(np.float32),
    )
