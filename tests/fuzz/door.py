"""The registry of doors.

A module of doors is named in MODULES and makes its doors when it is imported, with `door(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random

Files = dict[str, bytes]
"""An input: the files of a folder by their names in it, or the parts of a request by names of the door's own."""

MODULES = (
    *("tests.fuzz.task_doors", "tests.fuzz.run_doors", "tests.fuzz.kept_doors", "tests.fuzz.log_doors"),
    *("tests.fuzz.model_doors", "tests.fuzz.server_doors", "tests.fuzz.endpoint_doors"),
    "tests.fuzz.folder_doors",
)
"""The modules that hold doors."""

DOORS: dict[str, Door] = {}
"""Every door by its name; `doors()` fills it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A way in. All randomness comes from the Random that is given, so that a seed makes the same input again."""

    name: str
    make: Callable[[Random], Files]
    """Makes a good input, which pilocal must take."""
    mutate: Callable[[Files, Random], Files]
    """Breaks an input a little; it must not change what it is given."""
    knock: Callable[[Path, Files], object]
    """Gives an input to pilocal. Its files lie in the folder already, unless `lay` is false."""
    lay: bool = True
    """Whether the files of an input are written into a folder for each knock."""
    whole: bool = True
    """Whether a good input has all that it names, so that pilocal has nothing to say against it."""
    short: int = 100
    """Inputs in the test suite."""
    seconds: float = 5.0
    """Processor time after which an input hangs."""
    memory: int = 2**30
    """Bytes by which the process may grow while it reads one input."""

    def input(self, seed: int) -> Files:
        """Return the input that a seed makes: a good one for 0, else one that is broken in one to eight places."""
        random = Random(f"{self.name}:{seed}")
        files = self.make(random)
        for _ in range(0 if seed == 0 else random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            files = self.mutate(files, random)
        return files


def door(added: Door) -> Door:
    """Add a door."""
    assert added.name not in DOORS, added.name
    DOORS[added.name] = added
    return added


@cache
def doors() -> Mapping[str, Door]:
    """Return every door by its name."""
    for module in MODULES:
        import_module(module)
    return DOORS
