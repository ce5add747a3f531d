"""Processes that train together, of which one is killed, stopped or slow: no other waits for it without end."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.errors import PilocalError
from pilocal.training import heartbeat
from pilocal.training.follow import follow
from pilocal.training.heartbeat import BEAT, LEAVING, SILENCE, Heartbeat
from tests import test_torch_run
from tests.forked import ROOT, Forked
from tests.test_team import TRAINING, ends, free_ports, losses, read_until, tell
from tests.test_torch_team import environments
from tests.test_train import fit, setup

LONG, SHORT = (2000, 5), (6, 5)
"""Steps of each stage: more than are ever done, and as many as end by themselves."""


def beat(silence: float) -> None:
    """Have this process give others up sooner, where it need not be sure that they are not only slow."""
    heartbeat.BEAT, heartbeat.SILENCE, heartbeat.LEAVING = 0.5, silence, 2.0


def in_mlx(base: Path, folder: Path, steps: tuple[int, ...], silence: float) -> None:
    from pilocal.training.mlx.team import MlxTeam

    beat(silence)
    model = Base.at(base)
    team = MlxTeam.join()
    try:
        if team.rank:
            follow(setup(model, TRAINING, team=team))
        else:
            fit(model, folder, TRAINING, steps, progress=tell, team=team)
            team.end()
    except PilocalError as error:
        sys.exit(str(error))


def in_torch(base: Path, folder: Path, steps: tuple[int, ...], silence: float) -> None:
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    beat(silence)
    torch.set_num_threads(1)
    model = Base.at(base)
    team = TorchTeam.join("cpu")
    try:
        if team.rank:
            follow(test_torch_run.setup(model, team=team))
        else:
            test_torch_run.fit(model, folder, steps=steps, progress=tell, team=team)
    except PilocalError as error:
        sys.exit(str(error))
    finally:
        team.end()


def started(backend: str, base: Base, folder: Path, steps: tuple[int, ...], silence: float = 6) -> list[Forked]:
    """Start three processes of MLX or two of PyTorch, and return them once the first step is done."""
    folder.mkdir(parents=True, exist_ok=True)
    if backend == "mlx":
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(3)]))
        own: list[dict[str, str]] = [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(3)]
    else:
        own = environments()
    work = {"mlx": in_mlx, "torch": in_torch}[backend]
    processes = [Forked(work, base.folder, folder, steps, silence, **variables) for variables in own]
    read_until(processes[0], "1")
    return processes


@pytest.mark.processes
@pytest.mark.parametrize(("backend", "victim"), [("mlx", 0), ("mlx", 1), ("torch", 1)])
def test_one_that_is_stopped_ends_the_others_with_a_line(
    backend: str, victim: int, tiny_base: Base, tmp_path: Path
) -> None:
    processes = started(backend, tiny_base, tmp_path, LONG)
    stopped = processes.pop(victim)
    stopped.send(signal.SIGSTOP)
    try:
        ended = ends(processes)
    finally:
        stopped.send(signal.SIGKILL)
        stopped.ends(60)
    said = [last_words(each) for each in ended]
    assert any(f"rank {victim} has said nothing for 6 s; see whether it is stopped" in line for line in said), said


def last_words(ended: tuple[int, str, str]) -> str:
    """Return the one line of a process that could not go on, without what MLX's ring tells by itself."""
    status, _, said = ended
    (line,) = (line for line in said.splitlines() if not line.startswith("[ring] "))
    assert status == 1
    assert re.fullmatch(r"rank \d of \d: (rank \d|another process) .*run the same command again; nothing .*", line), (
        line
    )
    return line


@pytest.mark.processes
def test_one_of_three_that_dies_ends_both_others_with_a_line(tiny_base: Base, tmp_path: Path) -> None:
    processes = started("mlx", tiny_base, tmp_path, LONG)
    processes.pop(1).send(signal.SIGKILL)
    assert all(" is gone; " in last_words(each) for each in ends(processes))


@pytest.mark.processes
def test_one_that_is_slow_only_slows(tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path / "one", TRAINING)
    processes = started("mlx", tiny_base, tmp_path / "three", SHORT, SILENCE)
    while processes[1].runs():  # it has a fifth of the time
        for number, seconds in ((signal.SIGSTOP, 0.2), (signal.SIGCONT, 0.05)):
            with suppress(ProcessLookupError):
                processes[1].send(number)
            time.sleep(seconds)
    for status, _, said in ends(processes):
        assert (status, said) == (0, "")
    assert losses(tmp_path / "three")[1] == pytest.approx(losses(tmp_path / "one")[1], rel=1e-5)


def test_only_a_process_that_was_told_the_secret_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    ended: list[str] = []
    monkeypatch.setattr(Heartbeat, "_end", lambda self, what, fix: ended.append(what))
    first, second = Heartbeat(0, 2), Heartbeat(1, 2)
    numbers = first.listen("127.0.0.1")
    with socket.create_connection(("127.0.0.1", numbers[0]), 60) as stranger:
        stranger.sendall(bytes(20))
        assert stranger.recv(1) == b""
        second.connect("127.0.0.1", numbers)
        while not (first._peers and second._peers):
            time.sleep(0.01)
    assert [peer.rank for peer in first._peers] == [1]
    second.leave()
    first.leave()
    assert not ended


def test_without_an_address_nobody_is_watched() -> None:
    first, second = Heartbeat(0, 2), Heartbeat(1, 2)
    numbers = first.listen(None)
    assert numbers[0] == 0
    second.connect("127.0.0.1", numbers)
    assert first._thread is second._thread is None


def test_the_page_states_the_time() -> None:
    page = (ROOT / "pilocal/training/README.md").read_text()
    assert f"ends after {SILENCE:.0f} s" in page
    assert SILENCE + LEAVING + 2 * BEAT < 90
    assert "all others within 90 s" in page
