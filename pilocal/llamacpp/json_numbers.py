"""Whole and decimal numbers between bounds, as GBNF."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 10**16 - 1
"""The highest whole number that is written, of digits that a double keeps."""

FRACTION = 6
"""Digits after the point of a number with bounds, few enough that no double rounds onto a bound below MOST_BOUND."""

MOST_BOUND = 10**9


@dataclass(frozen=True, slots=True)
class Bounds:
    """From where to where, and whether each bound itself is left out."""

    low: int | None = None
    high: int | None = None
    above: bool = False
    below: bool = False


def whole_numbers(low: int, high: int) -> str:
    """Return GBNF for the whole numbers from `low` to `high`, neither beyond MOST; empty where there are none.

    >>> whole_numbers(-5, 12)
    '[0-9] | "1" ([0-2]) | "-" ([1-5])'
    """
    found = _naturals(max(low, 0), high)
    below = _naturals(max(1, -high), -low)
    return " | ".join([*found, *([f'"-" ({" | ".join(below)})'] if below else [])])


def decimal_numbers(bounds: Bounds) -> str:
    """Return GBNF for the numbers between whole bounds, without exponents; empty where there are none."""
    low = -MOST if bounds.low is None else bounds.low
    high = MOST if bounds.high is None else bounds.high
    found = []
    if high >= 0:
        found += _magnitudes(max(low, 0), high, above=bounds.above and low >= 0, below=bounds.below)
    if low < 0:
        below = _magnitudes(max(-high, 0), -low, above=bounds.below and high <= 0, below=bounds.above)
        found += [f'"-" ({" | ".join(below)})'] if below else []
    return " | ".join(found)


def _magnitudes(low: int, high: int, *, above: bool, below: bool) -> list[str]:
    """Return alternatives for numbers without sign."""
    zeros = f'("." "0"{{1,{FRACTION}}})?'
    if low >= high:
        return [] if low > high or above or below else [f'"{low}" {zeros}']
    found = []
    if above:
        found.append(f'"{low}." [0-9]{{0,{FRACTION - 1}}} [1-9]')
    wholes = _naturals(low + above, high - 1)
    if wholes:
        found.append(f'({" | ".join(wholes)}) ("." [0-9]{{1,{FRACTION}}})?')
    if not below:
        found.append(f'"{high}" {zeros}')
    return found


def _naturals(low: int, high: int) -> list[str]:
    """Return alternatives for the whole numbers from `low` to `high`, neither negative."""
    found = []
    for digits in range(len(str(low)), len(str(max(high, 0))) + 1):
        least = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        most = min(high, 10**digits - 1)
        if least <= most:
            found += _between(str(least), str(most))
    return found


def _between(low: str, high: str) -> list[str]:
    """Return alternatives for the numbers between two of equally many digits."""
    if low == high:
        return [f'"{low}"']
    if set(low) == {"0"} and set(high) == {"9"}:
        return ["[0-9]" if len(low) == 1 else f"[0-9]{{{len(low)}}}"]
    if len(low) == 1:
        return [f"[{low}-{high}]"]
    if low[0] == high[0]:
        return [f'"{low[0]}" ({" | ".join(_between(low[1:], high[1:]))})']
    first, last = int(low[0]), int(high[0])
    found = []
    if set(low[1:]) != {"0"}:
        found.append(f'"{first}" ({" | ".join(_between(low[1:], "9" * (len(low) - 1)))})')
        first += 1
    end = []
    if set(high[1:]) != {"9"}:
        end.append(f'"{last}" ({" | ".join(_between("0" * (len(high) - 1), high[1:]))})')
        last -= 1
    if first <= last:
        rest = f"[0-9]{{{len(low) - 1}}}"
        found.append(f'"{first}" {rest}' if first == last else f"[{first}-{last}] {rest}")
    return found + end
