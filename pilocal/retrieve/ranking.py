"""The order of scores from the highest down, computed only as far as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST = 64
"""How many are sorted at first; four times as many whenever more are needed."""


def falling(scores: NDArray[np.floating[Any]]) -> Iterator[int]:
    """Yield the numbers of (N,) scores from the highest down; ties are ordered by number.

    >>> list(falling(np.array([1.0, 3.0, 2.0, 3.0])))
    [1, 3, 2, 0]
    """
    above, count = np.inf, FIRST
    while above > -np.inf:
        floor = np.partition(scores, -count)[-count] if count < len(scores) else -np.inf
        part = np.flatnonzero((scores < above) & (scores >= floor))
        yield from part[np.argsort(-scores[part], kind="stable")].tolist()
        above, count = floor, 4 * count
