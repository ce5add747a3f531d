"""Trackers, with the real packages: what is reported can be read back, once, however the training ended."""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilocal.errors import InputError, RunError
from pilocal.run_folder.log import StepLine
from pilocal.training.tracker import TRACKERS, Tracker, check_tracker, open_tracker, scalars

ROOT = Path(__file__).parent.parent
KEY = "0123456789abcdef" * 4
CONFIG = {"model": "starter", "training": {"steps": 9, "learning_rate": 1e-3}, "lora": {"rank": 8, "keys": ["q", "v"]}}
NAMES = {
    "train/loss",
    "train/gradient_norm",
    "train/learning_rate",
    "train/tokens_per_second",
    "train/peak_memory_gib",
    "train/padding",
    "train/stage",
}

SESSION = """
import os, signal, sys, time
from pathlib import Path
from tests.test_tracker import CONFIG, KEY, line
from pilocal.errors import PilocalError
from pilocal.training.tracker import open_tracker

kind, folder = sys.argv[1], Path(sys.argv[2])
heard = []

def opened(first=0, key=KEY):
    return open_tracker(kind, folder, name="smart-home", key=key, config=CONFIG, first=first, warn=heard.append)

def report(tracker, steps, seconds=0.5):
    for step in steps:
        tracker.log(step // 5, line(step, seconds))
"""


def line(step: int, seconds: float = 0.5) -> StepLine:
    """The line of a step, as the loop writes it; a validation loss at every third."""
    return StepLine(
        step=step,
        loss=4 / step,
        gradient_norm=0.25 * step,
        learning_rate=1e-3,
        trained_tokens=100,
        prompt_tokens=900,
        computed_tokens=400,
        padding=0.125,
        seconds=seconds,
        peak_memory=3 << 29,
        valid_loss=5 / step if step % 3 == 0 else None,
    )


def session(kind: str, folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, where a warning is an error, without this user's settings for W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = folder.parent / "home"
    home.mkdir(parents=True, exist_ok=True)
    kept |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "NETRC": str(home / ".netrc")}
    command = [sys.executable, "-W", "error", "-c", SESSION + code, kind, str(folder)]
    environment = kept | environment
    return subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False)


def offline(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("wandb")
    return session("wandb", folder, code, WANDB_MODE="offline")


def tensorboard_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar by its name, as TensorBoard reads them: pairs of step and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(folder: Path) -> list[list[Any]]:
    """The records of each session of W&B, oldest first, from the log files (a LevelDB log of protocol buffers)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    sessions = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, position, record, records = path.read_bytes(), 7, b"", []
        assert data.startswith(b":W&B")
        while position + 7 <= len(data):
            length, kind = struct.unpack_from("<HB", data, position + 4)
            if (1 << 15) - position % (1 << 15) < 7 or kind == 0:  # the rest of the block is empty
                position += (1 << 15) - position % (1 << 15)
                continue
            record += data[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # whole, or its last part
                records.append(Record.FromString(record))
                record = b""
        sessions.append(records)
    return sessions


def wandb_history(records: list[Any]) -> list[tuple[int, dict[str, Any]]]:
    lines = []
    for record in records:
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            lines.append((record.history.step.num, {name: items[name] for name in items if not name.startswith("_")}))
    return lines


def test_a_line_is_shown_by_these_names() -> None:
    assert scalars(1, line(3)) == {
        "train/loss": 4 / 3,
        "train/gradient_norm": 0.75,
        "train/learning_rate": 1e-3,
        "train/tokens_per_second": 2000,
        "train/peak_memory_gib": 1.5,
        "train/padding": 0.125,
        "train/stage": 1,
        "valid/loss": 5 / 3,
    }
    assert set(scalars(0, line(4))) == NAMES
    assert scalars(0, line(4, seconds=0.0))["train/tokens_per_second"] > 0


def test_an_unknown_tracker_is_named() -> None:
    with pytest.raises(InputError, match="tensorbord: no such tracker; did you mean tensorboard"):
        check_tracker("tensorbord")


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)  # what Python itself keeps for a module that must not be found
    for refused in (lambda: check_tracker(kind), lambda: opened(kind, tmp_path)):
        with pytest.raises(InputError) as error:
            refused()
        assert str(error.value) == f"--report-to {kind}: {kind} is not installed; pip install {kind}"
    assert not list(tmp_path.iterdir())


def test_the_data_folder_of_wandb_is_not_taken_for_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert isinstance(importlib.machinery.PathFinder.find_spec("wandb"), importlib.machinery.ModuleSpec)
    with pytest.raises(InputError, match="wandb is not installed"):
        check_tracker("wandb")


@pytest.mark.parametrize("kind", TRACKERS)
def test_the_check_imports_nothing_heavy(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    code = """
from pilocal.training.tracker import check_tracker
check_tracker(kind)
print([name for name in ("torch", "tensorboard", "wandb") if name in sys.modules])
"""
    done = session(kind, tmp_path / "run", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def opened(kind: str, folder: Path, first: int = 0) -> Tracker:
    return open_tracker(kind, folder, name="smart-home", key=KEY, config=CONFIG, first=first)


def test_tensorboard_reads_back_what_was_reported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = opened("tensorboard", tmp_path)
    for step in range(1, 10):
        tracker.log(step // 5, line(step))
        assert tensorboard_curves(tmp_path)["train/loss"][-1][0] == step  # a reader sees a line at once
    tracker.close()
    curves = tensorboard_curves(tmp_path)
    assert set(curves) == NAMES | {"valid/loss"}
    for step in range(1, 10):
        for name, value in scalars(step // 5, line(step)).items():
            assert dict(curves[name])[step] == pytest.approx(value, rel=1e-6)
    assert [step for step, _ in curves["valid/loss"]] == [3, 6, 9]


def test_tensorboard_shows_the_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    opened("tensorboard", tmp_path, first=4).close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Tensors("settings/text_summary")
    shown = json.loads(event.tensor_proto.string_val[0])
    assert shown == {"name": "smart-home", "key": KEY} | CONFIG


def test_a_killed_training_that_goes_on_shows_every_step_once_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed = session("tensorboard", tmp_path / "run", "report(opened(), range(1, 8)); os.kill(os.getpid(), 9)")
    assert (killed.returncode, killed.stderr) == (-9, "")
    assert [step for step, _ in tensorboard_curves(tmp_path / "run")["train/loss"]] == list(range(1, 8))
    code = "tracker = opened(4); report(tracker, range(5, 10), seconds=2.0); tracker.close(); print(heard)"
    done = session("tensorboard", tmp_path / "run", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    curves = tensorboard_curves(tmp_path / "run")
    assert curves["train/tokens_per_second"] == [(step, 2000 if step < 5 else 500) for step in range(1, 10)]
    assert [step for step, _ in curves["valid/loss"]] == [3, 6, 9]


def test_a_tensorboard_folder_that_vanishes_costs_one_warning_and_no_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    code = """
import shutil
tracker = opened()
report(tracker, [1])
shutil.rmtree(folder)
report(tracker, range(2, 6))
tracker.close()
print(*heard)
"""
    done = session("tensorboard", tmp_path / "run", code)  # the writer's thread leaves a traceback on stderr
    assert done.returncode == 0
    assert done.stdout.startswith("tensorboard: no reports from step 2 on; the training goes on; FileNotFoundError")
    assert done.stdout.endswith("; metrics.jsonl has every step\n")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_folder_that_cannot_be_written_is_said_at_once(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match="cannot write"):
        opened(kind, tmp_path / "run")


def test_wandb_offline_keeps_what_was_reported_and_says_nothing(tmp_path: Path) -> None:
    code = """
before = [signal.getsignal(number) for number in range(1, 32)]
tracker = opened()
assert before == [signal.getsignal(number) for number in range(1, 32)]
report(tracker, range(1, 10))
tracker.close()
tracker.close()
assert not heard
"""
    done = offline(tmp_path / "run", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (records,) = wandb_records(tmp_path / "run")
    assert wandb_history(records) == [(step, scalars(step // 5, line(step))) for step in range(1, 10)]
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id, run.resume) == ("pilocal", "smart-home", KEY[:32], True)
    shown = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: shown[name] for name in CONFIG} == CONFIG
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_the_users_own_settings_of_wandb_come_first(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    elsewhere = tmp_path / "elsewhere"
    own = {"WANDB_PROJECT": "mine", "WANDB_NAME": "my-name", "WANDB_DIR": str(elsewhere), "WANDB_MODE": "offline"}
    done = session("wandb", tmp_path / "run", "opened().close()", **own)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ((run,),) = [[record.run for record in records if record.HasField("run")] for records in wandb_records(elsewhere)]
    assert (run.project, run.display_name) == ("mine", "my-name")


def test_wandb_that_is_disabled_keeps_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = "tracker = opened(); report(tracker, range(1, 4)); tracker.close(); assert not heard"
    done = session("wandb", tmp_path / "run", code, WANDB_MODE="disabled")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert wandb_records(tmp_path / "run") == []


def test_a_killed_training_loses_seconds_of_wandb_and_goes_on_under_the_same_id(tmp_path: Path) -> None:
    killed = offline(tmp_path / "run", "report(opened(), range(1, 8)); time.sleep(5); os.kill(os.getpid(), 9)")
    assert (killed.returncode, killed.stderr) == (-9, "")
    done = offline(tmp_path / "run", "tracker = opened(4); report(tracker, range(5, 10)); tracker.close()")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = wandb_records(tmp_path / "run")
    assert [step for step, _ in wandb_history(first)] == list(range(1, 8))
    assert [step for step, _ in wandb_history(second)] == list(range(5, 10))
    ids = {record.run.run_id for record in first + second if record.HasField("run")}
    assert ids == {KEY[:32]}


def test_ctrl_c_goes_through_wandb_and_leaves_no_finished_run(tmp_path: Path) -> None:
    code = """
tracker = opened()
try:
    report(tracker, range(1, 4))
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    tracker.close()
    print("interrupted")
"""
    done = offline(tmp_path / "run", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    (records,) = wandb_records(tmp_path / "run")
    assert len(wandb_history(records)) == 3
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps to find W&B's process")
def test_wandb_that_dies_costs_one_warning_and_the_next_training_has_its_own(tmp_path: Path) -> None:
    code = """
import subprocess
tracker = opened()
report(tracker, range(1, 4))
processes = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True).stdout
mine = [row.split() for row in processes.splitlines() if row.split()[1] == str(os.getpid()) and "wandb" in row]
os.kill(int(mine[0][0]), 9)
time.sleep(1)
report(tracker, range(4, 8))
tracker.close()
print(*heard)
tracker = opened(key="f" * 64)
report(tracker, range(1, 4))
tracker.close()
assert len(heard) == 1
"""
    done = offline(tmp_path / "run", code)  # Python says on stderr that nobody waited for the process that was killed
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("wandb: no reports from step 4 on; the training goes on; ")
    assert "metrics.jsonl has every step, and `wandb sync /" in done.stdout
    assert [step for step, _ in wandb_history(wandb_records(tmp_path / "run")[1])] == [1, 2, 3]


START = """
try:
    opened()
except PilocalError as error:
    print(type(error).__name__, error)
"""


def test_wandb_without_a_login_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = session("wandb", tmp_path / "run", START)
    assert done.stderr == ""
    assert done.stdout.startswith("InputError --report-to wandb: No API key configured.")
    assert done.stdout.endswith("; run `wandb login`, or set WANDB_MODE=offline\n")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "2"},
        {"WANDB_MODE": "of-line"},
    ],
    ids=["no server", "a wrong setting"],
)
def test_wandb_that_does_not_start_is_one_line(tmp_path: Path, fault: dict[str, Any]) -> None:
    pytest.importorskip("wandb")
    done = session("wandb", tmp_path / "run", START, **fault)
    assert done.stderr == ""
    assert done.stdout.startswith("TrainingError --report-to wandb: W&B does not start: ")
    assert done.stdout.endswith("; check the network and the WANDB_* variables, or set WANDB_MODE=offline\n")
    assert done.stdout.count("\n") == 1
