"""A run that is killed, interrupted, or that its disk fails, somewhere: `just faults` tries every command and fault."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.faults.kills import Lives
from tests.faults.matrix import COMMANDS, HALF, TWICE, Bench
from tests.faults.serving import ServeBench
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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServeBench:
    return ServeBench(tmp_path_factory.mktemp("served") / "serve")


@pytest.mark.parametrize(
    ("fault", "lines"), [("SIGKILL", 0), ("SIGINT twice", 3), ("disk full", 2), (HALF, 0), (TWICE, 0)]
)
def test_a_server_survives_it(fault: str, lines: int, served: ServeBench) -> None:
    assert served.writes > 8
    nth = served.writes - lines if lines else 2  # amid the lines of its log, or as it starts
    assert not (said := served.cell(fault, nth)), f"moment {nth} of {served.writes}: {said}"


def test_a_training_that_is_killed_ends_with_the_same_files(tmp_path: Path) -> None:
    told: list[str] = []
    assert not Lives("mlx", steps=30, kills=3, seed=0).survive(tmp_path, told.append)
    assert told[-1].endswith("every file is the same")
