"""Runs that go on elsewhere: in another folder, under another name, on a machine that is busier or quieter."""

from __future__ import annotations

import json
import re
import shutil
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


def test_a_training_goes_on_in_as_many_threads_as_it_began(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = make_task(tmp_path / "task", tiny_base.folder), list[int | None]()
    monkeypatch.setattr(blas, "set_threads", told.append)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == 5:
            raise KeyboardInterrupt

    def threads_after(begun: int | None, resumed: int | None) -> dict[str, int | None]:
        """Begin a training where one number is chosen, and go on where the other would be."""
        shutil.rmtree(folder / "run", ignore_errors=True)
        monkeypatch.setattr(blas, "choose_threads", lambda width: begun)
        with pytest.raises(KeyboardInterrupt):
            flow(folder, "train", stop)
        monkeypatch.setattr(blas, "choose_threads", lambda width: resumed)
        assert flow(folder, "train")["train"]
        found: dict[str, int | None] = json.loads((folder / "run" / "run.json").read_text()).get("threads", {})
        return found

    with pytest.warns(UserWarning, match="in one thread"):
        assert threads_after(begun=1, resumed=None) == {"train": 1}
    assert threads_after(begun=None, resumed=1) == {}
    assert told == [1, None]


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
