"""Run folders: one process at a time, one task, nothing half written."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pilocal.errors import RunError
from pilocal.run_folder.files import disk_error, replacing
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.hashes import hashes


def opened(
    path: Path, task: str = "t", folder: Path | None = None, file: str = "task.toml"
) -> AbstractContextManager[RunDir]:
    folder = folder or path
    (folder / file).touch()
    return RunDir.locked(path / "run", task=task, files={"task": folder / file, "train": folder / "train.jsonl"})


def test_a_step_is_done_only_with_its_key_and_while_its_files_are_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        file = run.path / "a.txt"
        file.write_text("four")
        run.finish("compress", "key", [file], 1.0)
        assert run.is_done("compress", "key")
        assert not run.is_done("compress", "other")
    with opened(tmp_path) as run:
        assert run.is_done("compress", "key")
        file.write_text("longer")
        assert not run.is_done("compress", "key")
        file.unlink()
        assert not run.is_done("compress", "key")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pilocal.run_folder.folder import RunDir\n"
        "with RunDir.locked(Path(sys.argv[1]) / 'run', task='t', files={'task': Path(sys.argv[1]) / 'task.toml'}): pass"
    )
    with opened(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert "in use by another process" in done.stderr
        assert done.returncode
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def begun(run: RunDir) -> None:
    run.describe(task_file="task.toml")


def test_a_run_of_another_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with opened(tmp_path) as run:
        begun(run)
    for other in ({"folder": tmp_path / "other"}, {"task": "u", "file": "u.toml"}):
        with pytest.raises(RunError, match="made from another task, t"), opened(tmp_path, **other):
            pass
    (tmp_path / "task.toml").unlink()
    with pytest.raises(RunError, match="made from another task, t"), opened(tmp_path, "u", tmp_path / "other"):
        pass


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_follows_a_task_that_was_moved_or_renamed(inside: bool, tmp_path: Path) -> None:
    def where(task: Path) -> Path:
        return task if inside else tmp_path / "runs"

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    with opened(where(first), folder=first) as run:
        begun(run)
    assert run.find_task() == first / "task.toml"
    with opened(where(first), "renamed", first) as run:
        run.save()
    first.rename(second)
    with opened(where(second), "renamed", second) as run:
        run.save()
    assert RunDir(where(second) / "run").find_task() == second / "task.toml"


def test_a_run_finds_the_task_that_was_moved_with_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "task").mkdir(parents=True)
    with opened(tmp_path / "a" / "runs", folder=tmp_path / "a" / "task") as run:
        run.describe(task_file="task.toml", backend={"initial_adapter": str(tmp_path / "a" / "task" / "start")})
    (tmp_path / "a").rename(tmp_path / "b")
    moved = tmp_path / "b" / "task"
    assert RunDir(tmp_path / "b" / "runs" / "run").find_task() == moved / "task.toml"
    with opened(tmp_path / "b" / "runs", "renamed too", moved) as run:
        assert run.state["backend"] == {"initial_adapter": str(moved / "start")}


def test_a_run_elsewhere_knows_its_task_by_the_examples(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "train.jsonl").write_text("examples")
    with opened(tmp_path, folder=first) as run:
        run.describe(task_file="task.toml", inputs=hashes({"train": first / "train.jsonl"}))
    first.rename(second)
    with opened(tmp_path, "renamed, too", second):
        pass
    (second / "train.jsonl").write_text("others")
    with pytest.raises(RunError, match="made from another task, t"), opened(tmp_path, "renamed, too", second):
        pass


def test_a_run_that_was_moved_alone_finds_its_task(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    with opened(tmp_path / "task") as run:
        begun(run)
    (tmp_path / "task" / "run").rename(tmp_path / "run")
    assert RunDir(tmp_path / "run").find_task() == tmp_path / "task" / "task.toml"
    with opened(tmp_path, folder=tmp_path / "task"):
        pass


def test_a_copy_of_a_task_has_a_run_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    with opened(tmp_path / "task") as run:
        begun(run)
    shutil.copytree(tmp_path / "task", tmp_path / "copy")
    with opened(tmp_path / "copy") as run:
        assert run.find_task() == tmp_path / "copy" / "task.toml"


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not a run folder"), opened(tmp_path):
        pass


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.save()
        run.file.write_text("{")
    with pytest.raises(RunError, match=r"damaged run\.json"), opened(tmp_path):
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RunError, match="the disk is full"), replacing(path) as file:
        file.write("half of the new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_told_from_a_forbidden_one(tmp_path: Path) -> None:
    assert "free some space" in str(disk_error(tmp_path, OSError(errno.ENOSPC, "")))
    assert "permissions" in str(disk_error(tmp_path, OSError(errno.EACCES, "Permission denied")))
