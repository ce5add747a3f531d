"""From where to where a number of a settings file may be: said once, checked, and shown in the reference.

A field is `steps: Annotated[int, Within(1, 10_000_000)] = 1000`, and its class's `__post_init__` requires
`*within(self)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, get_type_hints

from pilocal.task.toml import Check


@dataclass(frozen=True, slots=True)
class Within:
    """What a number may be, both ends included.

    >>> str(Within(1, 1000)), str(Within(0, 1, above=True)), str(Within(0, 1, below=True))
    ('1 to 1,000', 'above 0, to 1', '0 to below 1')
    """

    least: float
    most: float
    _: KW_ONLY
    above: bool = False
    """Whether `least` itself is too small."""
    below: bool = False
    """Whether `most` itself is too large."""
    otherwise: str = ""
    """What else would do, as the end of a sentence."""

    def __str__(self) -> str:
        """Return it as the reference has it."""
        return f"{'above ' * self.above}{self.least:,}{',' * self.above} to {'below ' * self.below}{self.most:,}"

    def holds(self, number: float) -> bool:
        """Tell whether a number is within; one that is none (NaN) is not."""
        large = number > self.least if self.above else number >= self.least
        return large and (number < self.most if self.below else number <= self.most)

    def must(self, number: float) -> str:
        """Return what a number that is not within must be: both ends for a share, else the one that it is beyond.

        >>> Within(1, 1000).must(0), Within(0, 1000).must(-1), Within(1, 1000).must(1001), Within(0, 1).must(2)
        ('must be at least 1', 'must not be negative', 'must be at most 1,000', 'must be between 0 and 1')
        """
        low = f"{'above' if self.above else 'at least'} {self.least:,}"
        high = f"{'below' if self.below else 'at most'} {self.most:,}"
        share = self.most <= 1
        if share and not self.above and not self.below:
            said = f"must be between {self.least:,} and {self.most:,}"
        elif share:
            said = f"must be {low} and {high}"
        elif number > self.least:
            said = f"must be {high}"
        else:
            said = f"must be {low}" if self.least or self.above else "must not be negative"
        return said + self.otherwise


@cache
def bounds_of(cls: Any) -> Mapping[str, Within]:
    """Return what the numbers of a dataclass may be, by the names of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    marks = {name: [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Within)]
             for name, hint in hints.items()}  # fmt: skip
    return {name: found[0] for name, found in marks.items() if found}


def within(settings: object) -> Iterator[Check]:
    """Yield a check that fails for each number of a dataclass that is not where its field says."""
    cls: Any = type(settings)
    for name, bound in bounds_of(cls).items():
        number = getattr(settings, name)
        if number is not None and not bound.holds(number):
            yield False, name, bound.must(number)
