"""The public API: the example script runs with it, and every file that it leaves is documented."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.run_folder.folder import RunDir
from tests.documents import PACKAGE, ROOT
from tests.test_flow import make_task

SCRIPT = ROOT / "examples" / "python_api.py"


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def finished(
    tiny_base: Base, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    task = make_task(tmp_path_factory.mktemp("api") / "task", tiny_base.folder, steps=3)
    return task, start(task)


def documented() -> list[str]:
    """The patterns of RUN_FOLDER.md's table of files."""
    text = (PACKAGE / "flow" / "RUN_FOLDER.md").read_text(encoding="utf-8").split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?`) \|", text, flags=re.MULTILINE)
    return [pattern.replace("/N/", "/[0-9]*/") for cell in cells for pattern in re.findall(r"`([^`]+)`", cell)]


def test_the_example_prints_every_arm_and_an_answer(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    task, done = finished
    assert done.returncode == 0, done.stderr
    arms = json.loads((task / "run" / "metrics.json").read_text())["arms"]
    assert [line.split(":")[0] for line in done.stdout.splitlines()[: len(arms)]] == list(arms)
    assert "tell red -> " in done.stdout


def test_every_file_of_a_run_folder_is_documented(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run = finished[0] / "run"
    files = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    patterns = documented()
    assert len(files) > 25
    assert not [file for file in files if not any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)]


def test_every_path_that_the_code_names_in_a_run_folder_is_documented() -> None:
    run = RunDir(Path("RUN"))
    named = [name for name, member in vars(RunDir).items() if isinstance(member, property)]
    places = [str(getattr(run, name).relative_to(run.path)) for name in named]
    assert len(places) > 5
    patterns = documented()
    assert not [place for place in places if not any(each.split("/")[0] == place for each in patterns)]


def test_the_example_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = start(tmp_path / "none")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'none' / 'task.toml'}: no such task; `pilocal init DIR` makes one"
    ]


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    assert pilocal.__all__ == dir(pilocal)
    assert not [name for name in pilocal.__all__ if not pilocal.__getattr__(name).__doc__]


def test_a_tilde_in_a_path_is_the_home_folder(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_task(tmp_path / "task", tiny_base.folder)
    assert pilocal.load_task("~/task") == pilocal.load_task(tmp_path / "task")
    assert pilocal.load_schedule("~/task/schedule.toml") == pilocal.load_schedule(tmp_path / "task" / "schedule.toml")
    settings: dict[str, Any] = {"schedule": "~/task/schedule.toml", "run": "~/somewhere"}
    assert pilocal.check("~/task", probe=False, **settings).stages
    assert (tmp_path / "somewhere").is_dir()
    assert pilocal.run("~/task/task.toml", until="stages", **settings).folder == tmp_path / "somewhere"
    assert pilocal.Run("~/somewhere").folder == tmp_path / "somewhere"
    for start, missing in ((pilocal.load, "run"), (pilocal.serve, "run"), (pilocal.compare, "task")):
        with pytest.raises(pilocal.PilocalError, match=re.escape(str(tmp_path / "no" / missing))):
            start(f"~/no/{missing}")


def test_every_type_that_a_caller_has_to_make_is_public() -> None:
    """What a function takes and no literal of Python's is."""
    taken = set()
    for name in ("check", "compare", "load", "load_schedule", "load_task", "run", "serve"):
        function = getattr(pilocal, name)
        for annotation in [each for key, each in function.__annotations__.items() if key != "return"]:
            taken |= set(re.findall(r"\b[A-Z]\w+", annotation))
    plain = {"Any", "Callable", "None", "Path", "Progress", "RequestLogEntry", "Sequence"}
    assert {"Backend", "Design", "Listeners", "Prices", "ServeOptions"} <= taken - plain
    assert taken - plain <= set(pilocal.__all__)
