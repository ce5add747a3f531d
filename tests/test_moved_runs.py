"""Runs that go on elsewhere: in another folder, under another name, on a machine that is busier or quieter."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from pilocal.base import blas
from pilocal.base.base import Base, find_base
from pilocal.errors import RunError
from pilocal.flow.opening import base_of
from pilocal.flow.run import Run
from pilocal.run_folder.shipped import read_shipped
from tests.test_flow import flow, make_task


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("moved") / "task", tiny_base.folder)
    flow(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's task."""
    return shutil.copytree(finished, tmp_path / "task")


def test_threads_are_chosen_at_every_checkpoint_and_kept_by_a_training_that_goes_on(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages begin after steps 0, 3 and 5 of 7, checkpoints stand after every second step."""
    folder, told, last = make_task(tmp_path / "task", tiny_base.folder), list[int | None](), 6
    monkeypatch.setattr(blas, "set_threads", told.append)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == last:
            raise KeyboardInterrupt

    def run(*choices: int | None) -> dict[str, dict[str, int | None]]:
        """Train where the machine is as busy as that at each choice; return what run.json says then."""
        left = list(choices)
        monkeypatch.setattr(blas, "choose_threads", lambda width: left.pop(0))
        with suppress(KeyboardInterrupt):
            flow(folder, "train", stop)
        assert not left
        found: dict[str, dict[str, int | None]] = json.loads((folder / "run" / "run.json").read_text()).get(
            "threads", {}
        )
        return found

    with pytest.warns(UserWarning, match="in one thread until that ends"):
        assert run(1, 1, None, None, 1) == {"train": {"0": 1, "3": None, "5": 1}}  # after 0, 2, 3, 4 and 5
    last = 0
    assert run(None) == {"train": {"0": 1, "3": None, "5": 1, "6": None}}  # goes on after 5, and is over after 7
    assert told == [1]
    shutil.rmtree(folder / "run")
    assert run(None, None, None, None, None, None) == {}


def test_a_training_of_a_former_version_keeps_its_threads(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew one number for all steps."""
    told = list[int | None]()
    monkeypatch.setattr(blas, "set_threads", told.append)
    file = copy / "run" / "run.json"
    state = json.loads(file.read_text()) | {"threads": {"train": 1}}
    del state["steps"]["train"]
    file.write_text(json.dumps(state))
    shutil.rmtree(copy / "run" / "stages" / "2" / "checkpoint")
    assert flow(copy, "train")["train"]
    assert told == [1]


def test_a_run_goes_on_where_its_task_was_moved_to(copy: Path) -> None:
    """The base lies in the task's folder, and the run was made there before."""
    shutil.copytree(find_base(json.loads((copy / "run" / "run.json").read_text())["model"], copy).folder, copy / "base")
    text = (copy / "task.toml").read_text()
    (copy / "task.toml").write_text(re.sub('model = ".*"', 'model = "base"', text))
    assert not any(flow(copy).values())
    moved = copy.rename(copy.parent / "elsewhere")
    try:
        assert Run(moved / "run").export("peft")["peft"]["files"]
        assert base_of(moved / "run").folder == moved / "base"
        assert not any(flow(moved).values())
        assert json.loads((moved / "run" / "run.json").read_text())["task"]["folder"] == str(moved)
        (moved / "task.toml").rename(moved / "other.toml")
        with pytest.raises(RunError, match="the task of this run is not there any more"):
            Run(moved / "run").export("peft")
    finally:
        moved.rename(copy)


def test_what_is_served_follows_the_name_of_the_task(copy: Path) -> None:
    before = (copy / "run" / "export" / "examples.jsonl").read_bytes()
    text = (copy / "task.toml").read_text()
    for name in ("another name", "a third"):
        (copy / "task.toml").write_text(text.replace('"tiny"', f'"{name}"'))
        if name == "another name":
            assert not any(flow(copy).values())
        else:
            Run(copy / "run").export("peft")
        assert read_shipped(copy / "run").name == name
        assert not any(flow(copy).values())
    assert (copy / "run" / "export" / "examples.jsonl").read_bytes() == before
