"""What is to be seen of a run, told from its folder alone: it may lie on a machine whose folder is mounted here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilocal.errors import PilocalError
from pilocal.run_folder.files import unreadable
from pilocal.run_folder.live import Live, read_live
from pilocal.run_folder.log import FILE, RECENT, StepLine
from pilocal.watch.facts import TRAIN, Facts, StageFacts, read_facts
from pilocal.watch.tail import Tail
from pilocal.watch.time_left import UNKNOWN, PlannedStage, TimeLeft, steps_left, time_left
from pilocal.watch.words import duration, sparkline

QUIET = 120.0
"""Seconds without a sign after which a run may be gone: it gives one every ten; a mounted folder may show it late."""

SHOWN_LINES = 8
WIDTH = 60
"""Letters of the sparkline."""

RUNNING, SILENT, STOPPED, DONE, GONE = "running", "silent", "stopped", "done", "gone"
LAST_STEP = "evaluate"
"""With it a run is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """A step of the flow."""

    name: str
    state: str
    """"done", "now" or "to come"."""
    seconds: float | None
    """What it took, or has taken so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage of a training; losses are nats per completion token, times seconds."""

    number: int
    tau: float | None
    shots: int | None
    taken: int
    """Steps."""
    planned: int | None
    loss: float | None
    """Of its last step."""
    valid_loss: float | None
    """The last one."""
    seconds: float
    """What its steps and validations took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of which a step has reported how far it is."""

    what: str
    done: int
    total: int
    note: str
    seconds_left: float | None
    """None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A line of metrics.jsonl, as it is shown."""

    step: int
    stage: int
    """The place among the stages of the training, from 0."""
    loss: float
    valid_loss: float | None
    tokens_per_second: float
    peak_memory: int
    """Bytes."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A run as it is now; the fields are the keys of /state. None stands for what is not known yet."""

    run: str
    task: str
    model: str
    backend: str
    status: str
    """"running", "silent", "stopped", "done" or "gone"."""
    said: str
    """The status in a sentence."""
    steps: tuple[StepState, ...]
    work: Work | None
    training: str
    """The step whose training is shown; empty where there is none."""
    trains: bool
    """Whether that training goes on."""
    stages: tuple[StageState, ...]
    stage: int | None
    """The place among `stages` of the one that goes on, or was the last."""
    step: int
    total: int | None
    """Steps of all stages."""
    loss: float | None
    valid_loss: float | None
    lowest_valid_loss: float | None
    """Under the prompt of the same stage."""
    tokens_per_second: float | None
    """Tokens of the rows, each counted whole, over the recent steps."""
    peak_memory: int | None
    """Bytes, over the recent steps."""
    seconds_left: float | None
    """Of the training, about."""
    stage_seconds_left: float | None
    guess: str
    """What makes these less sure."""
    then: tuple[str, ...]
    """The steps that follow the training."""
    sparkline: str
    lines: tuple[Step, ...]
    faults: tuple[str, ...]
    """What could not be read."""

    @property
    def position(self) -> str:
        """The stage in words, such as "stage 2 of 4"."""
        if self.stage is None:
            return ""
        return f"stage {self.stage + 1} of {len(self.stages)}"


class Watcher:
    """Looks at a run folder again and again; writes nothing there."""

    def __init__(self, folder: Path) -> None:
        """Take a run folder; raises RunError when no run has begun there."""
        self.folder = folder
        self._facts = read_facts(folder)
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
        return self._state(training, stages, gone, faults)

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

    def _state(self, training: str, facts: Sequence[StageFacts], gone: bool, faults: list[str]) -> State:
        known, live = self._facts, self._live
        planned = [PlannedStage(each.steps, each.tokens, self._tail(each).lines) for each in facts]
        trains = bool(facts) and (live.step == training if live else training not in known.done)
        (status, said), since = self._status(gone), time.monotonic() - self._seen
        left = time_left(planned) if trains else UNKNOWN
        lines = [line for stage in planned for line in stage.lines]
        recent = lines[-RECENT:]
        valid = next(filter(None, map(_validated, reversed(planned))), [])
        steps = _steps(known, live, since)
        names = [step.name for step in steps]
        return State(
            run=str(self.folder),
            task=known.task,
            model=known.model,
            backend=known.backend,
            status=status,
            said=said,
            steps=steps,
            work=_work(live, since) if live and status == RUNNING else None,
            training=training,
            trains=trains,
            stages=tuple(_stage(each, stage) for each, stage in zip(facts, planned, strict=True)),
            stage=_place(planned),
            step=lines[-1].step if lines else 0,
            total=None if any(each.steps is None for each in facts) else sum(each.steps or 0 for each in facts),
            loss=lines[-1].loss if lines else None,
            valid_loss=valid[-1] if valid else None,
            lowest_valid_loss=min(valid, default=None),
            tokens_per_second=_speed(recent),
            peak_memory=max((line.peak_memory for line in recent), default=None),
            seconds_left=left.training,
            stage_seconds_left=left.stage,
            guess=_guess(left, training in known.ending_early),
            then=tuple(names[names.index(training) + 1 :]) if trains and training in names else (),
            sparkline=sparkline([[line.loss for line in stage.lines] for stage in planned], WIDTH),
            lines=_shown(planned),
            faults=tuple(faults),
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


def _steps(facts: Facts, live: Live | None, since: float) -> tuple[StepState, ...]:
    """Return the steps; of those that were asked for, the ones before the step that is made are done."""
    names = live.steps if live else tuple(facts.done)
    now = names.index(live.step) if live and live.step in names else None
    found = []
    for place, name in enumerate(names):
        done = place < now if now is not None else name in facts.done
        state = "done" if done else "now" if place == now else "to come"
        seconds = facts.done.get(name) if done else live.seconds + since if live and place == now else None
        found.append(StepState(name=name, state=state, seconds=seconds))
    return tuple(found)


def _work(live: Live, since: float) -> Work | None:
    if not live.what or live.total <= 0:
        return None
    left = (live.what_seconds + since) / live.done * (live.total - live.done) if live.done > 0 else None
    return Work(what=live.what, done=live.done, total=live.total, note=live.note, seconds_left=left)


def _stage(facts: StageFacts, stage: PlannedStage) -> StageState:
    lines = stage.lines
    return StageState(
        number=facts.number,
        tau=facts.tau,
        shots=facts.shots,
        taken=len(lines),
        planned=facts.steps,
        loss=lines[-1].loss if lines else None,
        valid_loss=next(reversed(_validated(stage)), None),
        seconds=sum(line.seconds + (line.valid_seconds or 0.0) for line in lines),
    )


def _place(stages: Sequence[PlannedStage]) -> int | None:
    """Return the place of the stage that goes on, or was the last."""
    if not stages:
        return None
    begun = max((place for place, stage in enumerate(stages) if stage.lines), default=0)
    left = steps_left(stages) or []
    return next((place for place, steps in enumerate(left) if steps), begun)


def _validated(stage: PlannedStage) -> list[float]:
    """Return a stage's validation losses."""
    return [line.valid_loss for line in stage.lines if line.valid_loss is not None]


def _speed(lines: Sequence[StepLine]) -> float | None:
    seconds = sum(line.seconds for line in lines)
    return sum(line.tokens for line in lines) / seconds if seconds > 0 else None


def _guess(left: TimeLeft, may_end_early: bool) -> str:
    if left.training is None:
        return ""
    early = "a stage may end early" if may_end_early else ""
    return "; ".join(filter(None, (left.guess, early)))


def _shown(stages: Sequence[PlannedStage]) -> tuple[Step, ...]:
    numbered = [(place, line) for place, stage in enumerate(stages) for line in stage.lines[-SHOWN_LINES:]]
    return tuple(
        Step(
            step=line.step,
            stage=place,
            loss=line.loss,
            valid_loss=line.valid_loss,
            tokens_per_second=line.tokens / max(line.seconds, 1e-4),
            peak_memory=line.peak_memory,
            seconds=line.seconds,
        )
        for place, line in numbered[-SHOWN_LINES:]
    )
