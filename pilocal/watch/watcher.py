"""Looking at a run folder, again and again: it may lie on a machine whose folder is mounted here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from pilocal.errors import PilocalError
from pilocal.run_folder.files import unreadable
from pilocal.run_folder.live import Live, read_live
from pilocal.run_folder.log import FILE, StepLine
from pilocal.watch.facts import TRAIN, StageFacts, read_facts
from pilocal.watch.state import DONE, GONE, RUNNING, SILENT, STOPPED, State
from pilocal.watch.summary import step_states, training_fields, work_of
from pilocal.watch.tail import Tail
from pilocal.watch.words import duration

QUIET = 120.0
"""Seconds without a sign after which a run may be gone: it gives one every ten; a mounted folder may show it late."""

LAST_STEP = "evaluate"
"""With it a run is done."""


class Watcher:
    """Looks at a run folder again and again; writes nothing there."""

    def __init__(self, folder: Path) -> None:
        """Take a run folder; raises RunError when no run has begun there, or it cannot be read."""
        self.folder = folder
        try:
            self._facts = read_facts(folder)
        except OSError as error:
            raise unreadable(folder, error) from error
        self._tails: dict[Path, Tail] = {}
        self._live: Live | None = None
        self._signs: tuple[object, int] | None = None
        self._seen = time.monotonic() - self._age()
        """When something was last seen to change."""
        self._grew = -math.inf
        """When a training was last seen to take a step."""

    def look(self) -> State:
        """Return the run as it is now. What cannot be read now stays as it was, and is named among the faults."""
        faults: list[str] = []
        gone = not self._is_there(faults)
        if not gone:
            try:
                self._facts = read_facts(self.folder)
            except (PilocalError, OSError) as error:
                faults.append(_line(error, self.folder / "run.json"))
        try:
            self._live = read_live(self.folder / "live.json")
        except (PilocalError, OSError) as error:
            faults.append(_line(error, self.folder / "live.json"))
        training = self._training()
        stages = self._facts.trainings.get(training, ())
        if not gone:
            self._read(stages, faults)
        self._notice(stages)
        return self._state(training, gone, faults)

    def series(self) -> list[list[StepLine]]:
        """Return the lines of each stage of the training that is shown, as the last look found them."""
        return [list(self._tail(stage).lines) for stage in self._facts.trainings.get(self._training(), ())]

    def _is_there(self, faults: list[str]) -> bool:
        path = self.folder / "run.json"
        try:
            return path.is_file()
        except OSError as error:  # a mounted folder whose machine is away
            faults.append(_line(error, path))
            return False

    def _training(self) -> str:
        live = self._live
        if live and live.step in self._facts.trainings:
            return live.step
        return TRAIN if TRAIN in self._facts.trainings else next(iter(self._facts.trainings), "")

    def _tail(self, stage: StageFacts) -> Tail:
        return self._tails.setdefault(stage.folder, Tail(stage.folder / FILE))

    def _read(self, stages: Sequence[StageFacts], faults: list[str]) -> None:
        for stage in stages:
            tail = self._tail(stage)
            try:
                tail.look()
            except OSError as error:
                faults.append(_line(error, tail.path))
            if tail.damaged:
                lines = f"{tail.damaged} damaged lines are" if tail.damaged > 1 else "a damaged line is"
                faults.append(f"{tail.path}: {lines} left out")

    def _age(self) -> float:
        """Return how long ago the run's last sign was written, by this machine's clock, at least 0."""
        try:
            return max(0.0, time.time() - (self.folder / "live.json").stat().st_mtime)
        except OSError:
            return 0.0

    def _notice(self, stages: Sequence[StageFacts]) -> None:
        """Remember when the folder was last seen to change: the clock of another machine tells nothing."""
        signs = ((self._live, self._facts), sum(len(self._tail(stage).lines) for stage in stages))
        if self._signs is not None and signs != self._signs:
            self._seen = time.monotonic()
            if signs[1] > self._signs[1]:
                self._grew = self._seen
        self._signs = signs

    def _state(self, training: str, gone: bool, faults: list[str]) -> State:
        known, live = self._facts, self._live
        facts = known.trainings.get(training, ())
        trains = bool(facts) and (live.step == training if live else training not in known.done)
        (status, said), since = self._status(gone), time.monotonic() - self._seen
        steps = step_states(known, live, since)
        names = [step.name for step in steps]
        early = training in known.ending_early
        return State(
            run=str(self.folder),
            task=known.task,
            model=known.model,
            backend=known.backend,
            status=status,
            said=said,
            steps=steps,
            work=work_of(live, since) if live and status == RUNNING else None,
            training=training,
            trains=trains,
            then=tuple(names[names.index(training) + 1 :]) if trains and training in names else (),
            faults=tuple(faults),
            **training_fields(facts, [self._tail(each).lines for each in facts], trains=trains, may_end_early=early),
        )

    def _status(self, gone: bool) -> tuple[str, str]:
        since, live = time.monotonic() - self._seen, self._live
        if gone:
            return GONE, f"{self.folder} is not there any more; this page looks for it again and again"
        if live and live.ended:
            return STOPPED, f"stopped: {live.ended}; `pilocal run` with the same task resumes it"
        if live and since <= QUIET:
            return RUNNING, f"{live.step} goes on" if live.step else "goes on"
        if live:
            what = f"nothing was written for {duration(since)}"
            return SILENT, f"{what}: the run, or the way to its folder, may be gone"
        if self._training() not in self._facts.done and time.monotonic() - self._grew <= QUIET:
            return RUNNING, f"{self._training()} goes on"  # by a former version, which writes no live.json
        if LAST_STEP in self._facts.done:
            return DONE, "done"
        return STOPPED, "no process works on it; `pilocal run` with the same task resumes it"


def _line(error: PilocalError | OSError, path: Path) -> str:
    return str(unreadable(path, error) if isinstance(error, OSError) else error)
