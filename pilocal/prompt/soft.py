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
    count = min(count, log_probs_CV.shape[-1])
    ids_CK = np.stack([_likeliest(log_probs_V, count) for log_probs_V in log_probs_CV])
    rest_CV = np.exp(log_probs_CV, dtype=np.float64)
    np.put_along_axis(rest_CV, ids_CK, 0.0, -1)
    with np.errstate(divide="ignore"):
        tail_C = np.log(rest_CV.sum(-1))
    return Soft(
        ids_CK.astype(np.int32),
        np.take_along_axis(log_probs_CV, ids_CK, -1).astype(np.float32),
        tail_C.astype(np.float32),
    )


def _likeliest(log_probs_V: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the `count` likeliest tokens, the likeliest first; of equals those with the lowest ids.

    All others are never put in order: a vocabulary is a thousand times as long as what is asked for.
    """
    least = np.partition(log_probs_V, -count)[-count]
    some_S = np.flatnonzero(log_probs_V >= least)
    return some_S[np.argsort(-log_probs_V[some_S], kind="stable")[:count]]
