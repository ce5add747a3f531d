"""PyTorch trained by several processes: the same losses, one adapter, and clean ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import InputError, PilocalError
from pilocal.flow.runner import step_named
from pilocal.task import Lora
from pilocal.training.backend import torchrun_rank
from pilocal.training.follow import follow
from tests.forked import ROOT, Forked, pilocal
from tests.test_flow import make_task
from tests.test_team import ends, free_ports, read_until, tell
from tests.test_torch_run import SHARED, TRAINING, fit, lines, setup


def fit_in_team(base: Path, folder: Path) -> None:
    """Train as one of several processes: with settings that they agree on, and with others."""
    import torch

    from pilocal.training.torch_backend.team import TorchTeam

    torch.set_num_threads(1)
    model, lora = Base.at(base), Lora(rank=4)
    try:
        team = TorchTeam.join("cpu")
        if torchrun_rank():
            follow(setup(model, SHARED, lora, team=team))
            return
        try:
            fit(model, folder / "agreed", SHARED, lora, progress=tell, team=team)
            fit(model, folder / "not agreed", TRAINING, lora, progress=tell, team=team)
        finally:
            team.end()
    except PilocalError as error:
        sys.exit(str(error))


LEAVE = """
import os
from pilocal.training.torch_backend.team import TorchTeam

threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
team = TorchTeam.join("cpu")
within = threads()
import peft, transformers
team.share(1)
team.leave()
print(before, within, threads())
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_outlives_the_team() -> None:
    """One that did would reach for an interpreter that is gone, and abort the process."""
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [
        subprocess.Popen([sys.executable, "-c", LEAVE], env=os.environ | variables, **options)
        for variables in environments()
    ]
    for process, (said, fault) in [(each, each.communicate(timeout=120)) for each in processes]:
        assert process.returncode == 0, fault
        before, within, after = map(int, said.split())
        assert within > before
        assert after == before


def environments() -> list[dict[str, str]]:
    """Return what torchrun tells each of two processes."""
    port = str(free_ports(1)[0])
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [own | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def launch(base: Base, folder: Path) -> list[Forked]:
    return [Forked(fit_in_team, base.folder, folder, **variables) for variables in environments()]


@pytest.mark.processes
def test_two_processes_have_the_losses_of_one_and_must_agree_on_the_settings(tiny_base: Base, tmp_path: Path) -> None:
    fit(tiny_base, tmp_path / "one", SHARED, Lora(rank=4))
    ended = ends(launch(tiny_base, tmp_path))
    wanted, found = lines(tmp_path / "one"), lines(tmp_path / "agreed")
    assert len(found) == 11
    for one, two in zip(wanted, found, strict=True):
        losses = {name: one[name] for name in ("loss", "valid_loss") if name in one}
        assert {name: two[name] for name in losses} == pytest.approx(losses, rel=1e-5)
    for status, _, said in ended:
        assert status == 1
        assert "[lora] or [training] differs between processes; got '1 of them'" in said


@pytest.mark.processes
def test_a_process_that_dies_ends_the_other_with_a_line(tiny_base: Base, tmp_path: Path) -> None:
    processes = launch(tiny_base, tmp_path)
    read_until(processes[0], "5")
    processes[1].send(signal.SIGKILL)
    (status, _, said), (dead, _, _) = ends(processes)
    assert (status, dead) == (1, -signal.SIGKILL)
    assert "rank 0 of 2: another process of this training is gone" in said
    assert "Traceback" not in said


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "PORT", "-m", "--"],
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "PORT", "-m"),
    ],
}
"""Two processes; without GPUs --multi_gpu still has accelerate start torchrun."""


def launched(launcher: Sequence[str], *arguments: object) -> subprocess.Popen[str]:
    """Start pilocal in two processes, in a session of their own."""
    options = [str(free_ports(1)[0]) if option == "PORT" else option for option in launcher]
    return subprocess.Popen(
        [sys.executable, "-m", *options, "pilocal", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task that one process has trained."""
    task = make_task(tmp_path_factory.mktemp("team") / "task", tiny_base.folder)
    options = ("--backend", "torch", "--device", "cpu", "--schedule", task / "schedule.toml")
    done = pilocal("train", task, *options)
    assert done.returncode == 0, done.stderr
    return task


@pytest.mark.processes
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_task_trains_with_two_processes(launcher: str, finished: Path, tmp_path: Path) -> None:
    options = ["train", finished, "--backend", "torch", "--device", "cpu", "--schedule", finished / "schedule.toml"]
    with launched(LAUNCHERS[launcher], *options, "--run", tmp_path / "run") as process:
        said = process.communicate(timeout=200)[1]
    assert process.returncode == 0, said
    assert "train: done in" in said
    one, two = (
        [
            json.loads(line)["loss"]
            for path in sorted((folder / "run" / "stages").glob("*/metrics.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for folder in (finished, tmp_path)
    )
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.processes
def test_ctrl_c_under_torchrun_saves_the_step(finished: Path, tmp_path: Path) -> None:
    task = shutil.copytree(finished, tmp_path / "task", ignore=shutil.ignore_patterns("run"))
    text = (task / "task.toml").read_text()
    text = text.replace("steps = 7", "steps = 400").replace("checkpoint_every = 2", "checkpoint_every = 400")
    (task / "task.toml").write_text(text)
    run = tmp_path / "run"
    options = ["train", task, "--backend", "torch", "--device", "cpu", "--schedule", task / "schedule.toml"]
    with launched(LAUNCHERS["torchrun"], *options, "--run", run) as process:
        until = time.monotonic() + 100
        log = run / "stages" / "0" / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    saved = sorted((run / "stages" / "0" / "checkpoint").glob("step-*.safetensors"))
    assert saved, said
    done = len(log.read_text().splitlines())
    assert int(saved[-1].stem.removeprefix("step-")) == done
    assert done < 400


def test_processes_of_torchrun_do_not_train_in_mlx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pilocal.flow.followers import follow_leader

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"add --backend torch, or start the processes with mlx\.launch"):
        follow_leader(tmp_path, step_named("train"))
