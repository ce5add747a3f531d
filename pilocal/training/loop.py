"""The training loop: all stages, one adapter, one optimizer, resumable at every checkpoint, on any backend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.errors import TrainingError
from pilocal.progress import Progress
from pilocal.prompt.tokens import Row
from pilocal.run_folder.adapter import FILES
from pilocal.run_folder.log import FILE, Decision, Log, StepLine
from pilocal.task import Training
from pilocal.task.schedule import Adaptive
from pilocal.training.checkpoint import FORMATS, Checkpoint, Checkpoints
from pilocal.training.interrupt import Interrupt
from pilocal.training.learning_rate import learning_rate
from pilocal.training.protocol import Setup, StageTrainer, T, Trainer
from pilocal.training.row_order import Ordering, RowOrder, StagePlan
from pilocal.training.team import Kind, Order, Team
from pilocal.training.tracker import Tracker, tracking

NO_LOSS = "the base's own loss on the task's rows is not a number"
OTHER_BASE = 'take another base, copy or download this one again, or set [training] precision = "float32"'
"""What is said of a loss that no training has spoilt."""


def train(
    setup: Setup[T],
    plans: Sequence[StagePlan],
    *,
    key: str,
    progress: Progress,
    warn: Callable[[str], None],
    name: str = "train",
    adaptive: Adaptive | None = None,
    track: Callable[[int], Tracker] | None = None,
) -> list[Path]:
    """Train one adapter through all stages and return every file that is final.

    `key` is a fingerprint of everything that decides the result. The training resumes from a checkpoint with the same
    key; `warn` hears of a damaged one. With `adaptive` a stage may end early, see `Pace`. The processes of a team that
    this one leads share the work; `track`, called with the last step that was taken before, opens a tracker that gets
    every line. The first interrupt (Ctrl-C) lets the step finish, saves, and
    raises KeyboardInterrupt. Raises TrainingError when the loss stops being a number, the memory does not do, or a
    process of the team is gone; the last good checkpoint stays.
    """
    checkpoints = Checkpoints(key, FORMATS[setup.name], warn)
    checkpoint = checkpoints.newest([plan.folder / "checkpoint" for plan in plans])
    trainer = setup.lead(checkpoint, plans, warn)
    start, ends = (checkpoint.step, list(checkpoint.ends)) if checkpoint else (0, [])
    for plan in plans[len(ends) + 1 :]:
        (plan.folder / FILE).unlink(missing_ok=True)  # a former training's lines would be taken for this one's
    with Interrupt() as interrupt, tracking(track, start) as show:
        said = partial(progress, name)
        resumed = start if checkpoint else None
        course = _Course(trainer, setup, plans, resumed, checkpoints, adaptive, interrupt, show, said)
        for plan in plans[len(ends) :]:
            step = course.run_stage(plan, start, ends)
            folder = plan.folder / "checkpoint"
            if course.patience(plan) is not None and (best := checkpoints.best(folder)):
                trainer.restore(best.adapter, best.optimizer)
            # The adapter comes before the checkpoint, which promises that it is there.
            trainer.save(plan.folder)
            ends.append(step)
            checkpoints.save(folder, state_of(trainer, step, ends))
            if interrupt.asked:
                raise KeyboardInterrupt
    names = (*FILES, FILE)
    return [plan.folder / file for plan in plans for file in names] + setup.finish(trainer)


def state_of(trainer: Trainer, step: int, ends: Sequence[int]) -> Checkpoint:
    """Return what a checkpoint holds after `step` steps; `ends` tells where the stages ended that are over."""
    return Checkpoint(step, tuple(ends), trainer.adapter(), trainer.optimizer_state())


@dataclass(frozen=True, slots=True)
class _Course:
    """What all stages of a training have in common."""

    trainer: Trainer
    setup: Setup[Any]
    plans: Sequence[StagePlan]
    resumed: int | None
    """The step after whose checkpoint the training goes on; None where it begins."""
    checkpoints: Checkpoints
    adaptive: Adaptive | None
    interrupt: Interrupt
    show: Callable[[int, StepLine], None]
    say: Callable[[int, int, str], None]

    @property
    def training(self) -> Training:
        """The task's `[training]`."""
        return self.setup.training

    def patience(self, plan: StagePlan) -> int | None:
        """Return the patience with a stage; only the last one may end by it."""
        return self.training.patience if plan is self.plans[-1] else None

    def run_stage(self, plan: StagePlan, start: int, ends: Sequence[int]) -> int:
        """Take a stage's steps from step `start` of the whole run on; return the step after which it ended."""
        nth, total = len(ends), sum(other.steps for other in self.plans)
        first, last = ends[-1] if ends else 0, sum(other.steps for other in self.plans[: nth + 1])
        log = Log(plan.folder / FILE)
        log.forget_after(start if start > first else -1)
        rows = self._rows(plan.train, plan.order(self.training, share=self.trainer.shares_prefix))
        checks = _Checks(self.training.validate_every, first, last, self._look(plan), self._pace(plan, nth))
        step, ended = max(start, first), log.is_stale(self.patience(plan))
        self.setup.settle(step, step == self.resumed)
        while not ended:
            rate = learning_rate(step, total, self.training)
            line = _measured(rows, step, rate, step - first, f"stage {plan.number}")
            step += 1
            line = checks.add(line, step)
            if line.valid_loss is not None and line.valid_loss < log.lowest():
                self.checkpoints.save_best(plan.folder / "checkpoint", state_of(self.trainer, step, ends))
            log.append(line)
            self.show(plan.number, line)
            self.say(step, total, f"stage {nth + 1}/{len(self.plans)}  loss {line.loss:.3f}  {log.speed()}")
            moves_on = line.decision is not None and line.decision.moves_on
            ended = step == last or moves_on or log.is_stale(self.patience(plan))
            if not ended:
                self._rest(plan, step, ends)
        return step

    def _rest(self, plan: StagePlan, step: int, ends: Sequence[int]) -> None:
        """Save between two steps of a stage where that is due; raise KeyboardInterrupt when one was asked for."""
        if self.interrupt.asked or step % self.training.checkpoint_every == 0:
            self.checkpoints.save(plan.folder / "checkpoint", state_of(self.trainer, step, ends))
            if self.interrupt.asked:
                raise KeyboardInterrupt
            self.setup.settle(step, False)

    def _rows(self, rows: Sequence[Row], order: Ordering) -> _Rows:
        stage = self.trainer.stage(rows[0].tokens[: order.prefix])
        return _Rows(order, stage, self.trainer, self.setup.team, self.training)

    def _look(self, plan: StagePlan) -> Callable[[], float]:
        """Return a function that computes the validation loss under a stage's prompt."""
        order = RowOrder(plan.valid, self.training.batch_size, (0,), share=self.trainer.shares_prefix)
        return partial(self._rows(plan.valid, order).validate, order.in_order())

    def _pace(self, plan: StagePlan, nth: int) -> Pace | None:
        if self.adaptive is None or plan is self.plans[-1]:
            return None
        return Pace(self.adaptive, plan, self._look(self.plans[nth + 1]))


@dataclass(frozen=True, slots=True)
class _Checks:
    """When a stage's validation loss is computed, and when it is decided whether the stage ends."""

    every: int
    """Steps between two validations."""
    first: int
    """Steps of the run that were taken before the stage."""
    last: int
    """The step with which the stage ends at the latest."""
    look: Callable[[], float]
    pace: Pace | None

    def add(self, line: StepLine, step: int) -> StepLine:
        """Return the line of a step with the validation loss and the decision, if they are due after it."""
        decides = self.pace is not None and (self.pace.is_due(step - self.first) or step == self.last)
        if not decides and step != self.last and step % self.every:
            return line
        began = time.perf_counter()
        valid_loss = self.look()
        decision = self.pace.decide(valid_loss, self.last - step) if self.pace and decides else None
        seconds = round(time.perf_counter() - began, 4)
        return replace(line, valid_loss=valid_loss, valid_seconds=seconds, decision=decision)


class Pace:
    """Decides when a stage of an adaptive schedule ends: once the next one's prompt is about as good.

    The stage's rows and the next one's ask the same validation queries, before and after the prompt is cut.
    """

    def __init__(self, adaptive: Adaptive, plan: StagePlan, look_ahead: Callable[[], float]) -> None:
        self.margin = adaptive.margin
        self.every = max(1, round(adaptive.least * plan.steps))
        self.look_ahead = look_ahead

    def is_due(self, taken: int) -> bool:
        """Tell whether there is something to decide after so many steps of the stage."""
        return taken % self.every == 0

    def decide(self, valid_loss: float, left: int) -> Decision:
        """Return the decision with its figures; `left` is how many steps the stage may still take."""
        ahead = self.look_ahead()
        moves_on = ahead - valid_loss < self.margin or not left
        return Decision(next_valid_loss=ahead, margin=self.margin, steps_left=left, moves_on=moves_on)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows in their order, and what trains on them."""

    order: Ordering
    stage: StageTrainer
    trainer: Trainer
    team: Team
    training: Training

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run with the team; return the loss and the gradient norm."""
        with self.team.order(Order(Kind.STEP, number, rate, tuple(rows), self.order.prefix)):
            return self.stage.step(number, rate, rows)

    def validate(self, batches: Sequence[Sequence[Row]]) -> float:
        """Return the mean loss per completion token over some rows, in nats."""
        total, count = 0.0, 0.0
        for rows in batches:
            with self.team.order(Order(Kind.VALIDATE, rows=tuple(rows), prefix=self.order.prefix)):
                loss, tokens = self.stage.evaluate(rows)
            total, count = total + loss, count + tokens
        return total / count


def _measured(rows: _Rows, step: int, rate: float, nth: int, stage: str) -> StepLine:
    """Take a step, the stage's `nth` from 0, and return its line; raises TrainingError when the loss is no number."""
    chosen = rows.order.rows_at(nth)
    computed, padding = rows.stage.computed_tokens(chosen)
    began = time.perf_counter()
    rows.trainer.reset_peak_memory()
    loss, norm = rows.step(step, rate, chosen)
    seconds = time.perf_counter() - began
    if step == 0 and not math.isfinite(loss):
        raise TrainingError(f"{stage}, step 1", NO_LOSS, got=loss, fix=OTHER_BASE)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        fix = f"lower learning_rate (now {rows.training.learning_rate}) and run again"
        raise TrainingError(f"{stage}, step {step + 1}", "the loss is not a number any more", got=loss, fix=fix)
    trained = sum(len(row.completion) for row in chosen)
    return StepLine(
        step=step + 1,
        learning_rate=rate,
        loss=loss,
        gradient_norm=norm,
        trained_tokens=trained,
        prompt_tokens=sum(len(row.tokens) for row in chosen) - trained,
        computed_tokens=computed,
        padding=round(padding / computed, 4),
        seconds=round(seconds, 4),
        peak_memory=rows.trainer.peak_memory(),
    )
