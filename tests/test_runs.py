"""ls and clean: what they say of runs, and that nothing goes which a later run, the server or the report needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pilocal.base.base import Base
from pilocal.cli import cli
from pilocal.errors import InputError
from pilocal.flow.cleaning import CHECKPOINTS, LEFT_OVER, TEACHERS, clean, find_waste
from pilocal.flow.listing import DAMAGED, disk_bytes, find_runs, list_runs
from pilocal.flow.run import Run
from pilocal.run_folder.folder import RunDir
from tests.test_cli import pilocal as command
from tests.test_flow import flow, make_task

ASKED = """\
objective = "distill"
mix = 0.25
on_policy = true
on_policy_steps = 2
[lora]
"""


def pilocal(*arguments: object, answer: str = "") -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], input=answer, standalone_mode=False)


@pytest.fixture(scope="module")
def distilled(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task with a finished run of every kind of training."""
    folder = make_task(tmp_path_factory.mktemp("runs") / "task", tiny_base.folder)
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("[lora]\n", ASKED, 1))
    flow(folder)
    return folder


@pytest.fixture
def task(distilled: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(distilled, tmp_path / "task", symlinks=True))


def kinds(run: Path) -> dict[str, int]:
    return {waste.kind: len(waste.files) for waste in find_waste([run])}


def test_a_cleaned_run_is_up_to_date_served_and_listed_as_before(task: Path) -> None:
    run = task / "run"
    (run / "stages" / ".metrics.json.tmp").write_text("{")
    found = kinds(run)
    assert set(found) == {CHECKPOINTS, TEACHERS, LEFT_OVER}
    before, listed = disk_bytes(run), list_runs(task)
    answer = Run(run)
    with answer:
        said = answer.answer("tell red")
    promised = sum(waste.bytes for waste in find_waste([run]))
    done = pilocal("clean", task, "--yes")
    assert done.exit_code == 0, done.output
    assert kinds(run) == {}
    assert not list(run.rglob("*.npz")) and not list(run.rglob("checkpoint"))
    # run.json has a note more, and no list of what is gone.
    assert abs(before - disk_bytes(run) - promised) < 2000
    assert not any(flow(task).values())
    with Run(run) as again:
        assert again.answer("tell red") == said
    (line,), (former,) = list_runs(task), listed
    assert (line.score, line.done, line.finished) == (former.score, former.done, former.finished)


def test_a_training_that_is_done_again_asks_the_teacher_again(task: Path) -> None:
    clean(find_waste([task / "run"]))
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(text.replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    done = flow(task)
    assert done["teacher"] and done["mix"] and done["train"] and done["on_policy"]
    assert list((task / "run" / "teacher").rglob("*.npz"))


def test_what_a_training_under_way_resumes_from_stays(task: Path) -> None:
    """Its step is still recorded as done, with the key of before."""
    text = (task / "task.toml").read_text()
    (task / "task.toml").write_text(text.replace("learning_rate = 1e-3", "learning_rate = 2e-3"))

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow(task, progress=stop)
    run = task / "run"
    assert "train" in RunDir(run).state["steps"]
    newest = max(run.glob("stages/*/checkpoint/step-*"), key=lambda path: path.stat().st_mtime_ns)
    clean(find_waste([run]))
    assert newest.is_file()
    assert list((run / "teacher").rglob("*.npz"))


def test_nothing_goes_from_a_run_that_is_not_finished(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "train" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flow(folder, "train", stop)
    assert list((folder / "run").glob("stages/*/checkpoint/step-*"))
    assert kinds(folder / "run") == {}


def test_nothing_outside_of_a_run_goes(task: Path) -> None:
    run, outside = task / "run", task / "precious.npz"
    outside.write_text("x")
    state = json.loads((run / "run.json").read_text())
    state["steps"]["teacher"]["files"] |= {"../precious.npz": 1, str(outside): 1}
    (run / "run.json").write_text(json.dumps(state))
    moved = task / "elsewhere"
    (run / "stages" / "0" / "checkpoint").rename(moved)
    (run / "stages" / "0" / "checkpoint").symlink_to(moved)
    kept = list(moved.iterdir())
    assert kept
    clean(find_waste([run]))
    assert outside.is_file() and all(file.is_file() for file in kept)


@pytest.mark.parametrize("answer", ["n\n", "", "y\n"])
def test_clean_asks_first_and_deletes_only_after_a_yes(task: Path, answer: str) -> None:
    files = [file for waste in find_waste([task / "run"]) for file in waste.files]
    done = pilocal("clean", task, answer=answer)
    assert done.exit_code == 0, done.output
    assert ("nothing was deleted" in done.output) == (answer != "y\n")
    assert all(file.exists() for file in files) == (answer != "y\n")


def test_clean_with_json_deletes_with_yes_alone(task: Path) -> None:
    said = json.loads(pilocal("clean", task, "--json").stdout)
    assert (said["deleted"], said["freed"]) == (False, 0)
    assert {found["kind"] for found in said["found"]} == {CHECKPOINTS, TEACHERS}
    assert all(Path(file).is_file() for found in said["found"] for file in found["files"])
    freed = json.loads(pilocal("clean", task, "--json", "--yes").stdout)["freed"]
    assert freed == sum(found["bytes"] for found in said["found"])


def test_a_run_in_use_is_left_alone(task: Path) -> None:
    with RunDir.held(task / "run"):
        done = command("clean", task, "--yes")
    assert done.returncode == 0
    assert "left alone: " in done.stderr and "in use by another process" in done.stderr
    assert kinds(task / "run")


def test_the_cache_goes_only_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "pilocal" / "bases" / "abc" / "base.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 100)
    (tmp_path / "below").mkdir()
    pilocal("clean", tmp_path / "below", "--yes")
    assert kept.is_file()
    assert "100 B freed" in pilocal("clean", tmp_path / "below", "--yes", "--cache").output
    assert not kept.exists()


def test_what_another_program_calls_run_json_is_no_run_and_a_damaged_one_is_said_to_be(task: Path) -> None:
    other = task / "other"
    other.mkdir()
    (other / "run.json").write_text('{"steps": {}}')
    (task / "run" / "run.json").write_text("{")
    (line,) = list_runs(task)
    assert (line.folder, line.done, line.score) == (task / "run", DAMAGED, None)
    assert kinds(task / "run") == {}
    assert DAMAGED in pilocal("ls", task).output


def test_ls_tells_task_score_and_size(task: Path) -> None:
    (line,) = json.loads(pilocal("ls", task, "--json").stdout)
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert (line["task"], line["metric"], line["done"]) == ("tiny", "exact_match", "evaluate")
    assert line["score"] == metrics["arms"]["shipped"]["score"]
    assert line["prompted"] == metrics["arms"]["base_full_prompt"]["score"]
    assert line["bytes"] > 10_000
    table = pilocal("ls", task).output
    assert max(map(len, table.splitlines())) <= 80
    assert "evaluate" in table


def test_a_file_with_two_names_takes_its_room_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert 1000 <= disk_bytes(tmp_path) < 1500


def test_a_folder_without_runs_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no runs here" in pilocal("ls", tmp_path / "empty").output
    assert json.loads(pilocal("ls", tmp_path / "empty", "--json").stdout) == []
    assert "nothing to delete" in pilocal("clean", tmp_path / "empty").output
    for each in ("ls", "clean"):
        done = command(each, tmp_path / "emty")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert f"did you mean {tmp_path / 'empty'}?" in done.stderr
    with pytest.raises(InputError, match="must be a folder"):
        find_runs(Path(__file__))
