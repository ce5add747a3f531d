"""One training that is killed over and over: what it ends with is what it ends with undisturbed, byte for byte.

Every other life ends at a moment of the clock, and the others in the middle of a write: the process kills itself as it
opens a file or puts one into its place.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pilocal.base.base import find_base
from tests.faults.injection import run
from tests.faults.matrix import digest
from tests.forked import Forked
from tests.test_flow import make_task

STARTING = 0.1
"""Share of the kills by the clock that come before the first step."""

PACE = 1.5
"""Times of an undisturbed training's share that a life lasts at the most: enough, as the last steps are done again."""

PATIENCE = 3600.0
"""Seconds after which a training that is not killed is given up."""

Tell = Callable[[str], object]


@dataclass(frozen=True)
class Lives:
    """How one training is killed."""

    backend: str
    """mlx or torch."""
    steps: int
    kills: int
    seed: int

    def survive(self, folder: Path, tell: Tell) -> str:
        """Train undisturbed, and again with kills; return what differs at the end, or nothing."""
        task = make_task(folder / "task", find_base("starter", Path()).folder, steps=self.steps)
        toml = (task / "task.toml").read_text().replace("batch_size = 4", "batch_size = 2")
        seeded = toml.replace("checkpoint_every = 2", f"checkpoint_every = 5\nseed = {self.seed}")
        (task / "task.toml").write_text(seeded)
        writes, seconds = self._undisturbed(task)
        tell(f"{self.backend}: {self.steps} steps undisturbed in {seconds:.0f} s, with {writes} writes")
        wanted = digest(task / "run")
        rng, killed, trainings = Random(f"{self.backend} {self.seed}"), 0, 0
        while killed < self.kills:
            shutil.rmtree(task / "run")
            trainings += 1
            while killed < self.kills:
                if self._life(task, rng, killed, writes / self.kills, seconds / self.kills):
                    break
                killed += 1
                if killed % 20 == 0:
                    tell(f"{self.backend}: {killed} kills, {self._done(task)} of {self.steps} steps")
            status, _, said = self._start(task, None, 0).ends(PATIENCE)
            if status:
                return f"after {killed} kills: exit status {status}: {said.strip()[-500:]}"
            found = digest(task / "run")
            odd = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            if odd:
                return f"after {killed} kills these differ: {', '.join(odd[:5])}"
        tell(f"{self.backend}: {killed} kills in {trainings} trainings of {self.steps} steps; every file is the same")
        return ""

    def _undisturbed(self, task: Path) -> tuple[int, float]:
        """Return how many writes a training has, and how many seconds its steps take."""
        process = self._start(task, None, 0)
        self._until(lambda: bool(self._done(task)), process)
        began = time.monotonic()
        status, _, said = process.ends(PATIENCE)
        assert status == 0, said
        return int(task.with_name("count").read_text()), time.monotonic() - began

    def _life(self, task: Path, rng: Random, number: int, writes: float, seconds: float) -> bool:
        """Start the training and kill it; return whether it was done before."""
        if number % 2:
            process = self._start(task, "SIGKILL", rng.randint(1, max(1, round(PACE * writes))))
        else:
            process, before = self._start(task, None, 0), self._done(task)
            if rng.random() >= STARTING:
                self._until(lambda: self._done(task) > before, process)
            until = time.monotonic() + PACE * seconds * rng.random()
            self._until(lambda: time.monotonic() >= until, process)
            with suppress(ProcessLookupError):  # it is done
                process.send(signal.SIGKILL)
        status, _, said = process.ends(PATIENCE)
        assert status in (0, -signal.SIGKILL), said
        return status == 0

    def _until(self, happened: Callable[[], bool], process: Forked) -> None:
        while process.runs() and not happened():
            time.sleep(0.005)

    def _start(self, task: Path, fault: str | None, nth: int) -> Forked:
        words = ["train", str(task), "--schedule", str(task / "schedule.toml"), "--run", str(task / "run")]
        words += [] if self.backend == "mlx" else ["--backend", self.backend, "--device", "cpu"]
        return Forked(run, words, task, fault, nth, task.with_name("aside"), task.with_name("count"))

    def _done(self, task: Path) -> int:
        """Return how many steps the training has done."""
        return sum(path.read_bytes().count(b"\n") for path in (task / "run" / "stages").glob("*/metrics.jsonl"))
