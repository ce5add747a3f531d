"""Every command that works for long, with every fault, at several moments: what it says, and what is there afterwards.

A command is run once without a fault. For a cell of the matrix its folder is put back to what it was, the command is
run with the fault, and then again without: what it leaves has to be the same, byte for byte, but for times.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.injection import AT_A_WRITE, CLOCK, ERRORS, SIGNALS, VANISHED, run
from tests.forked import Forked, pilocal

HALF = "half-written file"
"""A file of the folder is cut in half, after the command; what it is made from is there."""

TWICE = "two processes"
"""The same command is started while it works."""

SAID = {
    "disk full": "the disk is full",
    "disk broken": "the disk fails",
    "no more files": "too many files are open",
    "read-only": "the disk is read-only",
}
"""What an error's line has to say."""

FAULTS = (*AT_A_WRITE, HALF, TWICE)

TIMES = re.compile(
    r"seconds|finished|times|tokens_per_second|peak_memory|speedup|break_even|_ms$|costs|metrics\.json|answered\.json|^threads$"
)
"""Keys whose values differ from run to run, among them the size of a log."""

VOLATILE = re.compile(r"(^|/)(\.lock|live\.json|report\.html|[^/]+\.svg|compare\.md|ladder\.log)$")
"""Files that say when, how long, or for how long."""

LOG = "metrics.jsonl"

LARGE = 2**20
"""Bytes from which on a file is compared by its hash."""


@dataclass(frozen=True)
class Command:
    """One command on a task, and what must have been run before it."""

    name: str
    words: tuple[str, ...]
    """With {task} for the folder of the task."""
    before: tuple[tuple[str, ...], ...] = ()
    remakes: bool = True
    """Whether it makes every damaged file again; otherwise those alone that it reads."""

    def line(self, task: Path, words: Sequence[str] | None = None) -> list[str]:
        """Return its words for a task."""
        return [word.format(task=task) for word in words or self.words]


RUN = ("run", "{task}", "--schedule", "{task}/schedule.toml", "--run", "{task}/run")

COMMANDS = (
    Command("run", RUN),
    Command("synth", ("synth", "{task}")),
    Command("compare", ("compare", "{task}", "--arms", "query-only,direct", "--seeds", "0"), remakes=False),
    Command("export", ("export", "{task}/run", "--quant", "q8_0", "--accept-loss"), (RUN,)),
    Command("report", ("report", "{task}/run"), (RUN,), remakes=False),
)


@dataclass
class Bench:
    """A folder in which one command is tried: `prepare` makes the task."""

    command: Command
    folder: Path
    prepare: Callable[[Path], Path]
    writes: int = 0
    """How many files the command opens to write or puts into their place."""
    expected: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.task = self.prepare(self.folder / "task")
        for words in self.command.before:
            done = pilocal(*self.command.line(self.task, words))
            assert done.returncode == 0, done.stderr
        shutil.copytree(self.task, self.folder / "before", symlinks=True)
        status, said = self._faulty(None, 0)
        assert status == 0, said
        self.writes = int((self.folder / "count").read_text())
        self.expected = digest(self.task)

    def cell(self, fault: str, nth: int) -> str:
        """Try one fault at the nth write; return what is wrong, or nothing."""
        self._reset()
        line = self.command.line(self.task)
        if fault == HALF:
            return self._half(nth)
        if fault == TWICE:
            return self._two(line)
        status, said = self._faulty(fault, nth)
        aside = self.folder / "aside"
        if fault == VANISHED and aside.exists():
            shutil.rmtree(self.task, ignore_errors=True)
            aside.rename(self.task)
        wrong = self._ended(fault, status, said)
        return wrong or self._again(line)

    def _reset(self) -> None:
        shutil.rmtree(self.task, ignore_errors=True)
        shutil.rmtree(self.folder / "aside", ignore_errors=True)
        shutil.copytree(self.folder / "before", self.task, symlinks=True)

    def _faulty(self, fault: str | None, nth: int) -> tuple[int, str]:
        where = (self.task, fault, nth, self.folder / "aside", self.folder / "count")
        status, _, said = Forked(run, self.command.line(self.task), *where).ends(600)
        return status, said

    def _ended(self, fault: str, status: int, said: str) -> str:
        """Return what is wrong with how it ended: a traceback, or an error that is no line."""
        if "Traceback" in said:
            return f"a traceback: {said.strip().splitlines()[-1]}"
        if fault in SIGNALS:
            return ""
        if fault in ERRORS and status == 0:
            return ""  # what could not be written is not needed, such as live.json
        if fault == CLOCK and status != 0:
            return f"exit status {status}: {last_line(said)}"
        if status not in (0, 1):
            return f"exit status {status}: {last_line(said)}"
        told = fault not in SAID or SAID[fault] in last_line(said)
        return "" if status == 0 or told else f"the line does not say it: {last_line(said)!r}"

    def _again(self, line: Sequence[str], besides: Path | None = None) -> str:
        done = pilocal(*line)
        if done.returncode:
            return f"again: exit status {done.returncode}: {last_line(done.stderr)}"
        found = digest(self.task)
        odd = sorted(name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name))
        odd = [name for name in odd if self.task / name != besides]
        return f"differs afterwards: {', '.join(map(self._odd, odd[:3]))}" if odd else ""

    def _odd(self, name: str) -> str:
        """Return a file's name, and the first key of it that differs."""
        found, expected = digest(self.task).get(name), self.expected.get(name)
        if found is None or expected is None:
            return f"{name} ({'missing' if found is None else 'new'})"
        pairs = zip(found.decode("latin-1").split(", "), expected.decode("latin-1").split(", "), strict=False)
        return f"{name} ({next((f'{one[:60]} for {other[:60]}' for one, other in pairs if one != other), 'longer')})"

    def _half(self, nth: int) -> str:
        line = self.command.line(self.task)
        done = pilocal(*line)
        assert done.returncode == 0, done.stderr
        own = self._written()
        if not own:
            return ""
        cut = own[nth % len(own)]
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        done = pilocal(*line)
        said = last_line(done.stderr)
        if "Traceback" in done.stderr:
            return f"{cut.name}: a traceback: {said}"
        if done.returncode:
            return "" if cut.name in said else f"{cut.name} is cut, but the line is {said!r}"
        wrong = self._again(line, None if self.command.remakes else cut)
        return f"{cut.name}: {wrong}" if wrong else ""

    def _written(self) -> list[Path]:
        """Return the files that the command wrote, of which a half would be less."""
        before = self.folder / "before"
        found = [path for path in sorted(self.task.rglob("*")) if path.is_file() and not path.is_symlink()]
        new = [path for path in found if not (before / path.relative_to(self.task)).exists()]
        read = [path for path in new if path.parent.name != "checkpoint"]  # nobody reads those of a finished training
        return [path for path in read if path.stat().st_size > 1]

    def _two(self, line: Sequence[str]) -> str:
        first = Forked(run, list(line), self.task, None, 0, self.folder / "aside", self.folder / "count")
        while not list(self.task.rglob(".lock")) and first.runs():
            time.sleep(0.01)
        second = pilocal(*line)
        status, _, said = first.ends(600)
        if status:
            return f"the first one: {last_line(said)}"
        if "Traceback" in second.stderr:
            return f"the second one: {last_line(second.stderr)}"
        return self._again(line)


def cells(writes: int, moments: int, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Yield each fault at so many of a command's writes, drawn from a seed; the first and the last are among many."""
    for fault in FAULTS:
        if fault == TWICE:
            yield fault, 0
            continue
        rng = Random(f"{seed} {fault}")
        some = rng.sample(range(1, writes + 1), min(moments, writes))
        yield from ((fault, nth) for nth in sorted(some))


def digest(folder: Path) -> dict[str, bytes]:
    """Return what every file below a folder holds, times left out; of a large file a hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not VOLATILE.search(name):
            content = _content(path)
            found[name] = content if len(content) < LARGE else hashlib.sha256(content).digest()
    return found


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".safetensors":  # MLX writes what is said about a file in any order
        size = 8 + int.from_bytes(content[:8], "little")
        return json.dumps(json.loads(content[8:size]), sort_keys=True).encode() + content[size:]
    if path.name == LOG or path.suffix == ".json":
        lines = content.splitlines() if path.name == LOG else [content]
        with suppress(ValueError):  # half of a file is compared as it is
            return json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True).encode()
    return content


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if not TIMES.search(key)}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def last_line(said: str) -> str:
    """Return the last line that says something."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
