"""The command line: exit statuses, one line per fault, JSON on stdout, and a help page that comes at once."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pilocal.base.base import Base
from pilocal.cli import COMMANDS, cli
from tests import forked
from tests.test_flow import make_task

ROOT = Path(__file__).parent.parent


def pilocal(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_page(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rn"], "pilocal: no such command: rn; did you mean run?; see `pilocal --help`"),
        (
            ["run", "x", "--schedul", "y"],
            "pilocal run: No such option '--schedul'. (Did you mean one of: '--help', '--schedule'?)",
        ),
        (["run"], "pilocal run: Missing argument 'TASK'."),
    ],
)
def test_misuse_is_one_line_and_exit_status_2(arguments: list[str], line: str) -> None:
    done = pilocal(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line.split("; see", maxsplit=1)[0])
    other = forked.pilocal(*arguments)  # the other tests' processes say what one of its own does
    assert (other.returncode, other.stdout, other.stderr) == (done.returncode, done.stdout, done.stderr)


def test_what_init_makes_passes_check(tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    assert pilocal("init", folder).returncode == 0
    done = pilocal("check", folder, "--json")
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [stage["shots"] for stage in stages] == [2, 1, 1, 0]
    assert stages[0]["ratio"] == 1.0
    assert stages[-1]["template_tokens"] == 0
    assert not (folder / "run").exists()


def test_check_and_run_warn_of_unclear_queries_in_one_line(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"query": "RED", "answer": "MIP"}\n')
    said = "a query has more than one answer, such as 'red', first on line 7"
    for command in (("check", folder, "--no-probe"), ("stages", folder)):
        done = forked.pilocal(*command, "--schedule", folder / "schedule.toml")
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
        assert warnings == [f"warning: {folder}/train.jsonl:10: {said}"]


def test_a_tilde_in_an_option_is_the_home_folder(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    done = forked.pilocal("stages", "~/task", "--schedule=~/task/schedule.toml", "--run=~/made", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "stages" / "0" / "train.jsonl").is_file()
    assert not (folder / "run").exists()
    assert not (ROOT / "~").exists()


def test_what_is_odd_about_the_files_is_a_warning_of_check(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with (folder / "template.md").open("a") as file:
        file.write("{query}\n")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "WRONG", "weight": 0}]
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns}) + "\n")
    done = forked.pilocal("check", folder, "--no-probe", "--schedule", folder / "schedule.toml")
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith(f"warning: {folder}/template.md:6: {{query}} in a template stays as it stands")
    assert second.startswith(
        f'warning: {folder}/train.jsonl: a record is left out, on line 10: every answer has "weight": 0'
    )


def test_init_leaves_a_folder_with_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    done = pilocal("init", tmp_path)
    assert (done.returncode, "already exists and is not empty" in done.stderr) == (1, True)


def test_bad_input_is_a_line_each_and_exit_status_1(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    (folder / "task.toml").write_text((folder / "task.toml").read_text() + "[lora2]\n")
    (folder / "valid.jsonl").write_text("")
    done = forked.pilocal("run", folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert "did you mean lora?" in done.stderr
    assert "valid.jsonl: the file is empty" in done.stderr


def test_a_hub_model_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", Path("nobody/no-such-model"))
    done = pilocal("check", folder, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be downloaded" in done.stderr


def test_a_full_disk_stops_the_run_with_a_line_and_leaves_it_resumable(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    arguments = ("train", folder, "--schedule", folder / "schedule.toml")

    def cramped() -> None:
        # A file may not grow beyond 20 kB: the adapter does not fit. Python turns the signal into an OSError.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = pilocal(*arguments, preexec_fn=cramped)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert not list(folder.rglob("*.tmp"))
    done = forked.pilocal(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"]["compress"]["skipped"]


def test_an_interrupted_run_exits_130_and_goes_on(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder, steps=300)
    arguments = ["train", str(folder), "--schedule", str(folder / "schedule.toml")]
    command = [sys.executable, "-c", "import pilocal.cli; pilocal.cli.main()", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    log = folder / "run" / "stages" / "0" / "checkpoint"
    while not list(log.glob("step-*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in errors
    (folder / "task.toml").write_text((folder / "task.toml").read_text())
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        while second.poll() is None and not list((folder / "run" / "stages" / "1" / "checkpoint").glob("step-*")):
            time.sleep(0.05)
        lines = (folder / "run" / "stages" / "0" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 121))
    finally:
        second.kill()
        second.communicate()


def test_the_command_line_program_is_installed() -> None:
    done = subprocess.run([Path(sys.executable).parent / "pilocal", "--version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"pilocal, version")
