"""How figures are said, in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-~=+*#"
"""The same for a terminal that has no other letters."""


HUGE = 1e150
"""Values beyond it are drawn as if they were there: the sum of some must stay a number."""


def duration(seconds: float) -> str:
    """Return a time that is left or has passed; what is left is never said to be nothing.

    >>> duration(0.2), duration(89.2), duration(100), duration(3599), duration(5400), duration(200_000)
    ('1 s', '90 s', '2 min', '60 min', '1 h 30 min', '2 d 7 h')
    """
    whole = max(1, math.ceil(seconds))
    if whole <= 90:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def sparkline(pieces: Sequence[Sequence[float]], width: int, levels: str = LEVELS, border: str = "│") -> str:
    """Return values as marks of several heights, in about `width` letters; a border stands between the pieces.

    Each mark is the mean of the values that share it. Values that are not finite are left out.

    >>> sparkline([[4, 3, 2, 1], [2, 1]], 40)
    '█▆▃▁│▃▁'
    >>> sparkline([[1, 1]], 40), sparkline([], 40), sparkline([[2, 2, 1, 1]], 2)
    ('▁▁', '', '█▁')
    """
    kept = [[max(-HUGE, min(HUGE, value)) for value in piece if math.isfinite(value)] for piece in pieces]
    kept = [piece for piece in kept if piece]
    count = sum(map(len, kept))
    room = max(1, width - len(kept) + 1)
    means = [_means(piece, max(1, min(len(piece), room * len(piece) // count))) for piece in kept]
    low = min((min(piece) for piece in means), default=0.0)
    spread = max((max(piece) for piece in means), default=0.0) - low
    scale = (len(levels) - 1) / spread if spread > 0 else 0.0
    return border.join("".join(levels[round((value - low) * scale)] for value in piece) for piece in means)


def _means(values: Sequence[float], parts: int) -> list[float]:
    """Return the means of `parts` pieces of about one length."""
    ends = [part * len(values) // parts for part in range(parts + 1)]
    return [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(ends)]
