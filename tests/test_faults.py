"""A run that is killed, interrupted, or that its disk fails, somewhere: `just faults` tries every command and fault."""

from __future__ import annotations

from random import Random

import pytest

from tests.faults.matrix import COMMANDS, HALF, Bench
from tests.faults.tasks import made

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    command = next(command for command in COMMANDS if command.name == "run")
    return Bench(command, tmp_path_factory.mktemp("faults") / "run", made(command.name))


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGINT twice", "disk full", "folder vanishes", HALF])
def test_a_run_survives_it(fault: str, bench: Bench) -> None:
    nth = Random(fault).randint(1, bench.writes)
    assert bench.writes > 100
    assert not (said := bench.cell(fault, nth)), f"write {nth} of {bench.writes}: {said}"
