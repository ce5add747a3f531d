"""Which tests are slow: measured once in a while with `pytest --write-slow`, kept in tests/slow.txt.

Processor time counts, with that of child processes, so that other work on the machine does not. A test's is its own and
that of every fixture that its module alone uses, since whoever runs one test of a module waits for those. One with
parameters takes as long as all of them.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.forked import SPENT

SLOW = Path(__file__).with_name("slow.txt")
"""Slow tests by name, without their parameters, one per line."""

LIMIT = 0.8
"""Seconds of processor time from which a test is slow."""


def slow_tests() -> frozenset[str]:
    """Return the names of SLOW."""
    return frozenset(SLOW.read_text(encoding="utf-8").splitlines())


def name_of(item: pytest.Item) -> str:
    """Return a test's name without its parameters."""
    return item.nodeid.split("[")[0]


def processor_seconds() -> float:
    """Return what this process, and its children that have ended, computed so far."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system + sum(SPENT)


class Durations:
    """Measures a session's tests and fixtures and writes SLOW at its end."""

    def __init__(self) -> None:
        self._tests: defaultdict[str, float] = defaultdict(float)
        self._fixtures: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._used: dict[str, set[tuple[str, str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        """Measure a fixture; one with parameters counts as the longest of them."""
        began = processor_seconds()
        made = yield
        fixture = fixturedef.baseid, fixturedef.argname
        self._fixtures[fixture] = max(self._fixtures[fixture], processor_seconds() - began)
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure a test."""
        began, name = processor_seconds(), name_of(item)
        try:
            return (yield)
        finally:
            self._tests[name] += processor_seconds() - began
            module = item.nodeid.split("::")[0]
            self._used[name] = {(module, each) for each in getattr(item, "fixturenames", ())}

    def pytest_sessionfinish(self) -> None:
        """Write SLOW; what it says of tests that did not run here stays."""
        taken = {
            name: own + sum(self._fixtures[each] for each in self._used[name]) for name, own in self._tests.items()
        }
        found = {name for name, seconds in taken.items() if seconds > LIMIT}
        with SLOW.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # each of several processes writes what it ran
            found |= set(file.read().splitlines()) - taken.keys()
            file.seek(0)
            file.truncate()
            file.write("".join(f"{name}\n" for name in sorted(found)))
