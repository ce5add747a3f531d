"""What can go from finished runs: nothing that a later run, the server or the report reads.

Checkpoints go once their training is finished, what the teacher said once the run is evaluated, and what an
interrupted write left behind. A training that has to be done again asks the teacher again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilocal.errors import PilocalError
from pilocal.flow.steps import DIRECT_DROP, EVALUATE, MIX, ON_POLICY, TEACHER, TRAIN
from pilocal.run_folder.files import MISSHAPEN, cache_folder, disk_error, parse_json
from pilocal.run_folder.folder import RunDir

CHECKPOINTS, TEACHERS, LEFT_OVER, CACHE = "checkpoints", "teacher's words", "interrupted writes", "cache"
"""The kinds of files that can go; the last is not a run's and goes only where that is asked for."""

HEADER = struct.Struct("<Q")
"""The size of a safetensors file's header, before it."""


@dataclass(frozen=True, slots=True)
class Waste:
    """The files of one kind that can go from a folder."""

    folder: Path
    """The run, or the cache."""
    kind: str
    files: tuple[Path, ...]
    bytes: int
    """What deleting them frees; a file that has another name elsewhere frees nothing."""

    @classmethod
    def of(cls, folder: Path, kind: str, files: Iterable[Path]) -> Waste:
        """Return the files of a kind that are there; links are left out, and what lies outside of the folder."""
        own = folder.resolve()
        inside = [file for file in files if file.parent.resolve().is_relative_to(own)]
        there = tuple(sorted(file for file in inside if file.is_file() and not file.is_symlink()))
        states = [file.lstat() for file in there]
        return cls(folder, kind, there, sum(state.st_size for state in states if state.st_nlink == 1))


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean` deleted."""

    bytes: int = 0
    faults: list[PilocalError] = field(default_factory=list)
    """Runs that were left alone, such as one in use."""


def find_waste(runs: Sequence[Path], *, cache: bool = False) -> list[Waste]:
    """Return what can go from some runs and, with `cache`, all that pilocal keeps for this user.

    A damaged run is left alone. What the cache holds is made again when it is needed; a run on another disk that
    links to it has to be exported again.
    """
    found = [waste for run in runs for waste in _waste(run)]
    kept = [Waste.of(cache_folder(), CACHE, cache_folder().rglob("*"))] if cache and cache_folder().is_dir() else []
    return [waste for waste in (*found, *kept) if waste.files]


def clean(found: Sequence[Waste]) -> Cleaned:
    """Delete what was found, unless it is needed by now; a run that another process holds is left alone.

    Raises RunError when a file cannot be deleted.
    """
    done, faults = 0, list[PilocalError]()
    for folder in dict.fromkeys(waste.folder for waste in found):
        if any(waste.kind == CACHE for waste in found if waste.folder == folder):
            done += sum(_delete(waste) for waste in found if waste.folder == folder)
            continue
        try:
            with RunDir.held(folder) as run:
                for waste in _waste(folder):
                    done += _delete(waste)
                    if waste.kind == TEACHERS:
                        _note(run, waste)
        except PilocalError as fault:
            faults.append(fault)
    return Cleaned(done, faults)


def _waste(folder: Path) -> Iterator[Waste]:
    try:
        run = RunDir(folder)
        kinds = {CHECKPOINTS: _checkpoints(run), TEACHERS: _teachers(run), LEFT_OVER: folder.rglob(".*.tmp")}
        for kind, files in kinds.items():
            yield Waste.of(folder, kind, files)
    except (PilocalError, *MISSHAPEN):
        return


def _trainings(run: RunDir) -> dict[str, list[Path]]:
    """Return the folders of each training step's stages."""
    stages = sorted(run.stage(0).parent.glob("[0-9]*")) if run.stage(0).parent.is_dir() else []
    return {TRAIN.name: stages, ON_POLICY.name: [run.on_policy], DIRECT_DROP.name: [run.direct_drop]}


def _checkpoints(run: RunDir) -> Iterator[Path]:
    """Yield the checkpoints of trainings that are finished; one of a training under way has another key."""
    for step, folders in _trainings(run).items():
        record = run.state["steps"].get(step)
        if record and run.is_done(step, record["key"]):
            for folder in folders:
                files = (folder / "checkpoint").glob("*.safetensors")
                yield from (file for file in files if _key(file) == record["key"])


def _teachers(run: RunDir) -> Iterator[Path]:
    """Yield what the teacher said, once the run is evaluated and no training is under way."""
    steps = run.state["steps"]
    if not (record := steps.get(EVALUATE.name)) or not run.is_done(EVALUATE.name, record["key"]):
        return
    for step, folders in _trainings(run).items():
        found = [file for folder in folders for file in (folder / "checkpoint").glob("*.safetensors")]
        if any(_key(file) != steps.get(step, {}).get("key") for file in found):
            return
    for name in (TEACHER.name, MIX.name, ON_POLICY.name):
        yield from (run.path / file for file in steps.get(name, {}).get("files", {}) if file.endswith(".npz"))


def _key(checkpoint: Path) -> str | None:
    """Return the key of the training that wrote a checkpoint; None where the file is damaged."""
    try:
        with checkpoint.open("rb") as file:
            (size,) = HEADER.unpack(file.read(HEADER.size))
            if size > checkpoint.stat().st_size:
                return None
            said: dict[str, Any] = parse_json(file.read(size))
        return str(said["__metadata__"]["key"])
    except (*MISSHAPEN, struct.error):
        return None


def _note(run: RunDir, waste: Waste) -> None:
    """Record that a step's files were deleted on purpose, so that it is made again only for a training."""
    gone = {str(file.relative_to(run.path)) for file in waste.files}
    for name, record in run.state["steps"].items():
        if gone.isdisjoint(record["files"]):
            continue
        if name == ON_POLICY.name:  # what it deleted is read by nothing else
            record["files"] = {file: size for file, size in record["files"].items() if file not in gone}
        else:
            record["cleaned"] = True
    run.save()


def _delete(waste: Waste) -> int:
    """Delete the files and the folders that are empty then; return the bytes that this frees."""
    try:
        for file in waste.files:
            file.unlink(missing_ok=True)
        for folder in sorted({file.parent for file in waste.files}, reverse=True):
            if folder != waste.folder and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise disk_error(error.filename or waste.folder, error) from error
    return waste.bytes
