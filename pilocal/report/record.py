"""What a run has left on disk, as far as it has come: the facts that a report is made from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, RunError
from pilocal.report.schedule import schedule_text
from pilocal.run_folder.adapter import WEIGHTS_FILE
from pilocal.run_folder.files import MISSHAPEN, parse_json
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.log import FILE as LOG
from pilocal.run_folder.log import StepLine, read_log
from pilocal.run_folder.references import begins_with_header

COMPARISON, BENCH, ARTEFACTS = "compare.json", "bench.json", "artefacts.json"

SCHEDULE = "schedule.toml"
"""The file that the page's commands name where the run's schedule is not the default."""


@dataclass(frozen=True, slots=True)
class Part:
    """What was trained in one go: a stage, or what came after the last."""

    name: str
    tau: float | None
    shots: int | None
    lines: Sequence[StepLine]


class Record:
    """A run folder's files, read when they are asked for; all of them raise RunError for a damaged file."""

    def __init__(self, folder: Path, comparison: Path | None = None) -> None:
        """Open a run folder; `comparison` is the folder of a comparison, by default the one beside the task.

        Raises InputError when a comparison that is named is not there.
        """
        self.run = RunDir(folder)
        self.state: Mapping[str, Any] = self.run.state
        self._comparison = comparison
        if comparison is not None and not (comparison / COMPARISON).is_file():
            fix = "`pilocal compare TASK` makes one"
            raise InputError(comparison, f"there is no {COMPARISON} in this folder", fix=fix)

    @property
    def name(self) -> str:
        """The task's."""
        return str(self.state["task"]["name"])

    @property
    def is_comparison(self) -> bool:
        """Whether the folder is that of a comparison, which has runs of its own."""
        return "schedule" not in self.state

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """metrics.json; empty before the evaluation."""
        return _read(self.run.metrics)

    @cached_property
    def forms(self) -> Mapping[str, Mapping[str, Any]]:
        """artefacts.json: what was exported; empty before the export."""
        return _read(self.run.export / ARTEFACTS)

    @cached_property
    def retention(self) -> Mapping[str, Any]:
        """What the adapter changes on unrelated prompts; empty where nobody looked."""
        known: Mapping[str, Any] = self.metrics.get("retention", {})
        return known or _read(self.run.retention / "adapter.json").get("summary", {})

    @cached_property
    def census(self) -> Mapping[str, Any]:
        """census.json; empty where nobody looked."""
        found = _read(self.run.census)
        with trusting(self.run.census):
            _ = [(one["entry"], one["nats"], one["queries"]) for one in found["entries"]] if found else []
            _ = found["full"] - found["bare"] if found else 0
        return found

    @cached_property
    def bench(self) -> Mapping[str, Any]:
        """bench.json; empty where nothing was timed."""
        return _read(self.run.path / BENCH)

    @cached_property
    def comparison_folder(self) -> Path:
        """Where the comparison is, or would be."""
        if self._comparison or self.is_comparison:
            return self._comparison or self.run.path
        return self.task_file.parent / "compare"

    @cached_property
    def comparison(self) -> Mapping[str, Any]:
        """compare.json; empty where there is none, or one of another test set, metric or base."""
        found = _read(self.comparison_folder / COMPARISON)
        if self.is_comparison or not found:
            return found
        tested = {key: self.metrics.get(key) for key in ("metric", "n")}
        own = {"task": self.name, "model": self.state.get("model"), **tested}
        other = [f"{key} {found.get(key)!r}" for key, value in own.items() if value not in (None, found.get(key))]
        if other and self._comparison:
            fix = f"the run has {', '.join(f'{key} {value!r}' for key, value in own.items())}"
            raise InputError(self._comparison, "a comparison of something else", got=", ".join(other), fix=fix)
        return {} if other else found

    @cached_property
    def parts(self) -> list[Part]:
        """What has been trained so far, in its order, each with its log."""
        found = []
        with trusting(self.run.file):
            stages: Sequence[Mapping[str, Any]] = self.state.get("schedule", ())
            for number, stage in enumerate(stages):
                lines = read_log(self.run.stage(number) / LOG)
                found.append(Part(f"stage {number}", stage["tau"], stage["shots"], lines))
        found.append(Part("on its own answers", None, None, read_log(self.run.on_policy / LOG)))
        return [part for part in found if part.lines]

    @cached_property
    def answers(self) -> list[Mapping[str, Any]]:
        """answers.jsonl; empty before the evaluation."""
        path = self.run.answers
        if not path.is_file():
            return []
        found = [_object(line, f"{path}:{number}") for number, line in enumerate(_lines(path), 1)]
        with trusting(path):
            _ = [(line["query"], line["answer"]) for line in found]
        return found

    @property
    def adapter_weights(self) -> Path | None:
        """The trained adapter's file, if there is one."""
        path = self.run.adapter / WEIGHTS_FILE
        return path if path.is_file() else None

    def count_rows(self, split: str) -> int | None:
        """Return how many records of a split were rendered; None before that."""
        path = self.run.stage(0) / f"{split}.jsonl"
        lines = _lines(path) if path.is_file() else None
        return None if lines is None else len(lines) - (bool(lines) and begins_with_header(lines[0]))

    @property
    def task_file(self) -> Path:
        """The task.toml that the run was made from, or would be found now."""
        try:
            return self.run.find_task()
        except KeyError:
            return Path(self.state["task"]["folder"], "task.toml")

    @cached_property
    def schedule(self) -> str:
        """The run's schedule as a file; empty where it is the default, or not known."""
        with trusting(self.run.file):
            return schedule_text(self.state)

    def command(self, verb: str, *more: str) -> str:
        """Return a command on the task of this run, with its schedule and its folder."""
        file = self.task_file
        folder, task = self.run.path.resolve(), file.parent if file.name == "task.toml" else file
        words = ["pilocal", verb, str(task), *(("--schedule", SCHEDULE) if self.schedule else ())]
        if folder != (file.parent / "run").resolve() or verb == "check":
            words += ["--run", str(folder)]
        return shlex.join([*words, *more])

    def command_on_run(self, verb: str, *more: str) -> str:
        """Return a command on the run itself."""
        return shlex.join(["pilocal", verb, str(self.run.path.resolve()), *more])

    def report_command(self, price: float | None) -> str:
        """Return the command that makes this page again."""
        priced = [] if price is None else ["--price", f"{price:g}"]
        compared = ["--compare", str(self._comparison.resolve())] if self._comparison else []
        return self.command_on_run("report", *priced, *compared)

    @property
    def compare_command(self) -> str:
        """The command that makes a comparison where this report looks for it."""
        file = self.task_file
        task, folder = file.parent if file.name == "task.toml" else file, self.comparison_folder
        words = ["pilocal", "compare", str(task)]
        return shlex.join(words if folder == file.parent / "compare" else [*words, "--run", str(folder.resolve())])


@contextmanager
def trusting(path: Path) -> Iterator[None]:
    """Raise RunError where the block finds a file of another shape than it should have."""
    try:
        yield
    except MISSHAPEN as error:
        said = f"{type(error).__name__}: {error}"
        raise RunError(path, f"damaged: {said}", fix="delete this file and run again what made it") from None


def _read(path: Path) -> Mapping[str, Any]:
    return _object(path.read_bytes().decode("utf-8", "replace"), path) if path.is_file() else {}


def _object(text: str, where: object) -> Mapping[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise RunError(where, f"damaged: {error}", fix="delete this file and run again what made it") from None
    if not isinstance(found, dict):
        raise RunError(where, "damaged: not a JSON object", fix="delete this file and run again what made it")
    return found


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line]
