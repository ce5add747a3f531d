"""How far a score may be off: the percentile bootstrap over queries, and over runs if there are several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def interval(
    marks_RNS: NDArray[np.float64],
    total: Callable[[NDArray[np.float64]], float],
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bounds of the score at the given level, by the percentile method (Efron, 1979).

    `marks_RNS` holds the marks of R runs on the same N queries, (R, N, S); `total` turns (N, S) marks into a score. A
    resample draws N queries, the same for every run, and R runs, both with replacement. Its score is the mean over its
    runs. Equal seeds draw equal queries, so that two arms are resampled alike.

    >>> import numpy as np
    >>> interval(np.ones((1, 50, 1)), lambda marks: float(marks.mean()))
    (1.0, 1.0)
    """
    runs, queries, _ = marks_RNS.shape
    draws = np.random.default_rng(seed)
    scores = np.empty(samples)
    for sample in range(samples):
        drawn = marks_RNS[:, draws.integers(queries, size=queries)]
        # A run that is drawn twice is totalled once and weighted twice.
        chosen, times = np.unique(draws.integers(runs, size=runs), return_counts=True)
        scores[sample] = np.average([total(drawn[run]) for run in chosen], weights=times)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
