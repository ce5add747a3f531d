"""The run folder: what lies where, which steps are done, and one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, disk_error, read_json, unreadable, write_json
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.typed import fits

BESIDE = ".."
"""Where a task lies from its default run folder, and where run.json does not say it."""


class RunDir:
    """A run folder; make it with `RunDir.locked` to write, or directly to read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: dict[str, Any] = {"steps": {}}
        if self.file.is_file():
            try:
                self.state = _checked(read_json(self.file))
            except PermissionError as error:
                raise unreadable(self.file, error) from None
            except MISSHAPEN:
                raise RunError(
                    self.file, "damaged run.json", fix="delete this file; finished steps are redone"
                ) from None

    @classmethod
    @contextmanager
    def locked(cls, path: Path, *, task: str, files: Mapping[str, Path]) -> Iterator[RunDir]:
        """Open a run folder for writing, creating it, and keep every other process out until the block ends.

        `task` is the task's name, `files` are its. Raises RunError when another process holds it, when it belongs to
        another task (not the same one moved or renamed), or when `path` holds something that is not a run.
        """
        try:
            if path.is_dir() and any(path.iterdir()) and not (path / "run.json").is_file():
                others = [child for child in path.iterdir() if not child.name.startswith(".")]
                if others:
                    fix = "choose a new folder with --run"
                    raise RunError(path, "not a run folder, and not empty", got=others[0].name, fix=fix)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error
        with cls.held(path) as run:
            run._take(task, files)
            yield run

    @classmethod
    @contextmanager
    def held(cls, path: Path) -> Iterator[RunDir]:
        """Open a run folder that is there, and keep every other process out until the block ends.

        Raises RunError when another process holds it.
        """
        try:
            lock = (path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise disk_error(path, error) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                holder = lock.read().strip()
                fix = "wait for it, or choose another folder with --run"
                raise RunError(path, "the run folder is in use by another process", got=holder, fix=fix) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()}")
            lock.flush()
            yield cls(path)

    def _take(self, task: str, files: Mapping[str, Path]) -> None:
        """Make this the run of a task; raises RunError when it is another's."""
        file = files["task"].parent.resolve() / files["task"].name
        beside = os.path.relpath(file.parent, self.path.resolve())
        mine = {"name": task, "folder": str(file.parent), "beside": beside}
        owner = self.state.get("task")
        if isinstance(owner, dict):
            former = Path(str(owner.get("folder")))
            named = owner.get("name") == task
            there = former == file.parent or owner.get("beside", BESIDE) == beside
            renamed = there and self.state.get("task_file", file.name) == file.name
            moved = not (former / file.name).is_file() and (named or self._learned_from(files.get("train")))
            if not ((there and named) or renamed or moved):
                what = f"this run was made from another task, {owner.get('name')}"
                raise RunError(self.path, what, got=str(former), fix="choose another folder with --run")
            _follow(self.state.get("backend"), former, file.parent)
        self.state["task"] = mine

    def _learned_from(self, train: Path | None) -> bool:
        known = self.state.get("inputs", {}).get("train")
        return train is not None and train.is_file() and sha256_file(train) == known

    def find_task(self) -> Path:
        """Return the task.toml that the run was made from, also where both were moved.

        Raises KeyError when no run has begun here.
        """
        owner, name = self.state["task"], str(self.state["task_file"])
        beside = Path(os.path.normpath(self.path.resolve() / owner.get("beside", BESIDE) / name))
        return beside if beside.is_file() else Path(owner["folder"], name)

    @property
    def file(self) -> Path:
        """run.json."""
        return self.path / "run.json"

    @property
    def live(self) -> Path:
        """What the run does now, while it works."""
        return self.path / "live.json"

    @property
    def templates(self) -> Path:
        """The compressed templates."""
        return self.path / "templates"

    @property
    def census(self) -> Path:
        """What the prompt is worth to the base, and each entry of the template."""
        return self.path / "census.json"

    @property
    def teacher(self) -> Path:
        """What the base says with the whole prompt."""
        return self.path / "teacher"

    @property
    def mix(self) -> Path:
        """What the bare base says to unrelated requests."""
        return self.path / "mix"

    @property
    def on_policy(self) -> Path:
        """The student's own answers, and what was trained on them."""
        return self.path / "on_policy"

    @property
    def strength(self) -> Path:
        """How strong an adapter the validation examples ask for, and the answers that say so."""
        return self.path / "strength"

    @property
    def edit(self) -> Path:
        """Of a run that goes on from another: what has changed, and the adapter of before."""
        return self.path / "edit"

    @property
    def index(self) -> Path:
        """The example index."""
        return self.path / "index"

    @property
    def adapter(self) -> Path:
        """The final adapter, in mlx-lm's own format."""
        return self.path / "adapter"

    @property
    def export(self) -> Path:
        """The artefacts for other programs."""
        return self.path / "export"

    @property
    def metrics(self) -> Path:
        """metrics.json."""
        return self.path / "metrics.json"

    @property
    def retention(self) -> Path:
        """What the base says to unrelated prompts, and how far the adapter lies from it."""
        return self.path / "retention"

    @property
    def confidence(self) -> Path:
        """How sure the served files are of their answers to the validation examples."""
        return self.path / "confidence.json"

    @property
    def entries_picture(self) -> Path:
        """The scores by entry of the template."""
        return self.path / "entries.svg"

    @property
    def direct_drop(self) -> Path:
        """The ablation's weights and log."""
        return self.path / "direct_drop"

    @property
    def answers(self) -> Path:
        """Every test query with what each arm said."""
        return self.path / "answers.jsonl"

    @property
    def answered(self) -> Path:
        """The arms' answers and costs before scoring, kept for another scoring."""
        return self.path / "answered.json"

    @property
    def written(self) -> Path:
        """The template as the adapter writes it, and the base."""
        return self.path / "written.json"

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.path / "report.html"

    def stage(self, number: int) -> Path:
        """The folder of a stage's rows and weights."""
        return self.path / "stages" / str(number)

    def is_done(self, step: str, key: str) -> bool:
        """Tell whether `step` was finished with this key (a fingerprint of its inputs) and its files are whole."""
        done = self.state["steps"].get(step)
        if not done or done["key"] != key:
            return False
        return all(
            (self.path / name).is_file() and (self.path / name).stat().st_size == size
            for name, size in done["files"].items()
        )

    def finish(self, step: str, key: str, files: Sequence[Path], seconds: float, **facts: Any) -> None:
        """Record that `step` is done and which files of the run folder it wrote."""
        self.state["steps"][step] = {
            "key": key,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "files": {str(file.relative_to(self.path)): file.stat().st_size for file in files},
            **facts,
        }
        self.save()

    def forget(self, step: str) -> None:
        """Let a step be made again, because what it read or wrote is written anew."""
        if self.state["steps"].pop(step, None):
            self.save()

    def rewritten(self, step: str, file: Path) -> None:
        """Record that a file of a finished step was written again."""
        known = self.state["steps"].get(step, {}).get("files", {})
        if str(file.relative_to(self.path)) in known:
            known[str(file.relative_to(self.path))] = file.stat().st_size
            self.save()

    def describe(self, **facts: Any) -> None:
        """Record facts about the whole run: versions, seed, the inputs' hashes."""
        self.state.update(facts)
        self.save()

    def save(self) -> None:
        """Write run.json."""
        write_json(self.file, self.state)


def _checked(state: dict[str, Any]) -> dict[str, Any]:
    """Return what run.json says if its parts are of the kinds that are written; raises one of MISSHAPEN else."""
    for name, kind in KINDS.items():
        if not fits(state.get(name), kind):
            raise TypeError(name)
    for step in state["steps"].values():
        if not all(fits(step.get(name), kind) for name, kind in STEP_KINDS.items()):
            raise TypeError("steps")
    return state


STEP_KINDS: Mapping[str, Any] = {
    "key": str,
    "files": dict[str, int],
    "finished": str | None,
    "seconds": float | None,
    "cleaned": bool | None,
}
"""The kinds of what it says about a step that is done."""


KINDS: Mapping[str, Any] = {
    "steps": dict[str, dict[str, Any]],
    "task": dict[str, str] | None,
    "task_file": str | None,
    "model": str | None,
    "base_sha256": str | None,
    "seed": int | None,
    "inputs": dict[str, str] | None,
    "versions": dict[str, str | None] | None,
    "backend": dict[str, Any] | None,
    "schedule": list[dict[str, Any]] | None,
    "plan": dict[str, Any] | None,
    "chat": dict[str, Any] | None,
    "start": dict[str, Any] | None,
}
"""The kinds of what run.json says, as far as all of pilocal relies on it."""


def _follow(backend: Any, former: Path, folder: Path) -> None:
    """Let the initial adapter of a training lie where the task was moved to, if it lay in the task's folder."""
    initial = backend.get("initial_adapter") if isinstance(backend, dict) else None
    if initial and Path(initial).is_relative_to(former) and not Path(initial).exists():
        backend["initial_adapter"] = str(folder / Path(initial).relative_to(former))
