"""More than one process: the same losses as one, and nothing lost when one of them dies."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import PilocalError, TrainingError
from pilocal.task import Training
from pilocal.training.follow import follow
from tests.forked import ROOT, Forked, pilocal
from tests.test_flow import make_task
from tests.test_train import as_dict, fit, random_rows, setup

TRAINING = Training(batch_size=5, learning_rate=1e-2, checkpoint_every=2, validate_every=3, seed=3)


def fit_in_team(base: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Train as one of several processes, which tells of each step if it is the first."""
    from pilocal.training.mlx.team import MlxTeam, launched_rank

    model, training = Base.at(base), Training(**{**as_dict(TRAINING), **settings})
    try:
        if launched_rank():
            follow(setup(model, training, team=MlxTeam.join()))
            return
        team = MlxTeam.join()
        try:
            fit(model, folder, training, progress=tell, team=team)
        finally:
            team.end()
    except PilocalError as error:
        sys.exit(str(error))


def tell(what: str, done: int, total: int, note: str = "") -> None:
    sys.stdout.write(f"{done}\n")
    sys.stdout.flush()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def launch(
    base: Base, folder: Path, settings: Callable[[int], dict[str, Any]] = lambda rank: {}, count: int = 2
) -> list[Forked]:
    """Start `count` processes that form a ring, as mlx.launch does."""
    folder.mkdir(parents=True, exist_ok=True)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(count)]))
    return [
        Forked(fit_in_team, base.folder, folder, settings(rank), MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts))
        for rank in range(count)
    ]


def ends(processes: list[Forked]) -> list[tuple[int, str, str]]:
    """Wait for all and return (exit status, stdout, stderr) of each."""
    return [process.ends(120) for process in processes]


def read_until(process: Forked, line: str) -> None:
    """Wait for a line of a process; fails when it ends without."""
    while line not in process.said().splitlines():
        assert process.runs(), process.said("stderr")
        time.sleep(0.01)


def losses(folder: Path) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for i in "01" for line in (folder / i / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines], [line[n] for line in lines for n in ("loss", "valid_loss") if n in line]


@pytest.mark.processes
@pytest.mark.parametrize(("count", "accumulate"), [(2, 2), (3, 1)])
def test_several_processes_give_the_losses_of_one(count: int, accumulate: int, tiny_base: Base, tmp_path: Path) -> None:
    settings = {"accumulate": accumulate}
    fit(tiny_base, tmp_path / "one", Training(**{**as_dict(TRAINING), **settings}))
    for status, _, said in ends(launch(tiny_base, tmp_path / "more", lambda rank: settings, count)):
        assert status == 0, said
    steps, values = losses(tmp_path / "more")
    wanted_steps, wanted = losses(tmp_path / "one")
    assert steps == wanted_steps == list(range(1, 12))
    assert values == pytest.approx(wanted, rel=1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_with_a_line_and_the_run_goes_on(
    victim: int, tiny_base: Base, tmp_path: Path
) -> None:
    fit(tiny_base, tmp_path / "one", TRAINING)
    processes = launch(tiny_base, tmp_path / "two")
    read_until(processes[0], "5")
    processes[victim].send(signal.SIGKILL)
    ended = ends(processes)
    assert ended[victim][0] == -signal.SIGKILL
    status, _, said = ended[1 - victim]
    assert status == 1
    assert re.search(rf"rank {1 - victim} of 2: another process of this training is gone; got .*run the same", said)
    assert "Traceback" not in said
    seen = []
    fit(tiny_base, tmp_path / "two", TRAINING, progress=lambda what, done, total, note="": seen.append(done))
    assert seen[0] in (3, 5, 7)  # what was saved is there
    steps, values = losses(tmp_path / "two")
    wanted_steps, wanted = losses(tmp_path / "one")
    assert steps == wanted_steps
    assert values == pytest.approx(wanted, rel=1e-5)


@pytest.mark.processes
def test_an_interrupt_of_all_saves_in_the_first(tiny_base: Base, tmp_path: Path) -> None:
    processes = launch(tiny_base, tmp_path, lambda rank: {"checkpoint_every": 100})
    read_until(processes[0], "3")
    for process in processes:
        process.send(signal.SIGINT)
    (first, out, _), (second, _, said) = ends(processes)
    assert first != 0
    assert second == 0, said
    last = int(out.split()[-1]) if out.split() else 3
    assert [path.name for path in (tmp_path / "0" / "checkpoint").glob("step-*")] == [f"step-{last:07d}.safetensors"]


@pytest.mark.processes
def test_hosts_that_do_not_agree_are_told_of_what(tiny_base: Base, tmp_path: Path) -> None:
    processes = launch(tiny_base, tmp_path, lambda rank: {"learning_rate": 1e-2 + rank})
    for status, _, said in ends(processes):
        assert status == 1
        assert "[lora] or [training] differs between hosts; got '1 of them'; make [lora] or [training]" in said


def test_one_process_that_was_launched_alone_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilocal.training.mlx.team import launched_rank

    monkeypatch.delenv("MLX_RANK", raising=False)
    assert launched_rank() is None
    (tmp_path / "hosts").write_text("\n")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert launched_rank() is None
    (tmp_path / "hosts").write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    assert launched_rank() == 0


def test_a_team_that_does_not_meet_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilocal.training.mlx.team import MlxTeam

    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "nowhere.json"))
    with pytest.raises(TrainingError, match=r"the other processes were not met; got .*mlx.launch"):
        MlxTeam.join()


def test_orders_arrive_as_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process sends as numbers, another reads as the same rows."""
    from pilocal.training.mlx.team import MlxTeam
    from pilocal.training.team import Kind, Order

    sent: list[Any] = []
    team = MlxTeam()
    order = Order(Kind.STEP, 7, 0.125, tuple(random_rows(1, 6, 12, 2, 16)), 12)

    def kept(array: Any) -> Any:
        sent.append(array)
        return array

    for given in (order, Order(Kind.FIT)):
        monkeypatch.setattr(team, "_sum", kept)
        team.exchange(given)
        monkeypatch.setattr(team, "_sum", lambda array: sent.pop(0))
        assert team.exchange(None) == given


@pytest.mark.processes
def test_mlx_launch_trains_a_task_with_two_processes(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    assert pilocal("train", task, "--run", tmp_path / "one").returncode == 0
    launcher = Path(sys.executable).with_name("mlx.launch")
    assert launcher.is_file()
    program = "import pilocal.cli; pilocal.cli.main()"
    command = [sys.executable, "-c", program, "train", str(task), "--run", str(tmp_path / "two")]
    start = str(free_ports(1)[0])
    done = subprocess.run(
        [str(launcher), "-n", "2", "--starting-port", start, "--", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        timeout=200,
    )
    assert "train: done in" in done.stderr, done.stderr
    assert "exited with code" not in done.stdout + done.stderr
    one, two = (
        [
            json.loads(line)["loss"]
            for path in sorted((tmp_path / run / "stages").glob("*/metrics.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for run in ("one", "two")
    )
    assert len(one) > 3
    assert two == pytest.approx(one, rel=1e-5)
    shutil.rmtree(tmp_path / "two")
