"""Numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Sequence


def score(value: float | None) -> str:
    """Return a score; empty for None.

    >>> score(0.25), score(None)
    ('0.250', '')
    """
    return "" if value is None else f"{value:.3f}"


def between(bounds: Sequence[float] | None) -> str:
    """Return the ends of an interval; empty for None.

    >>> between([0.5, 1])
    '0.500 to 1.000'
    """
    return "" if bounds is None else " to ".join(score(bound) for bound in bounds)


def figure(value: float | None) -> str:
    """Return a number that may be large: one digit behind the point up to 1,000; empty for None.

    >>> figure(7.94), figure(12345.6), figure(None)
    ('7.9', '12,346', '')
    """
    if value is None:
        return ""
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def small(value: float | None) -> str:
    """Return a number that may be tiny, with three digits that count; empty for None.

    >>> small(0.0000012345), small(6.101)
    ('1.23e-06', '6.1')
    """
    return "" if value is None else f"{value:.3g}"


def times(ratio: float | None) -> str:
    """Return how many times as much; a dash for None.

    >>> times(9.007), times(None)
    ('9.0 times', '\u2013')
    """
    return "\u2013" if ratio is None else f"{ratio:.1f} times"


def percent(share: float) -> str:
    """Return a share in percent.

    >>> percent(0.958)
    '95.8%'
    """
    return f"{100 * share:.1f}%"


def clock(seconds: float) -> str:
    """Return a duration as people say it.

    >>> clock(7.25), clock(65.4), clock(7384)
    ('7.2 s', '1 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
