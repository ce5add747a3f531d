"""The training loop: all stages, one adapter, one optimizer, resumable at every checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from pilocal.errors import TrainingError
from pilocal.progress import Progress
from pilocal.prompt.tokens import Row
from pilocal.run.hashes import fingerprint
from pilocal.run.log import Log
from pilocal.task import Lora, Training
from pilocal.task.schedule import Adaptive
from pilocal.training.interrupt import Interrupt
from pilocal.training.learning_rate import learning_rate
from pilocal.training.mlx.adapter import adapter_weights, add_lora, save_adapter
from pilocal.training.mlx.batches import Batch, Batches
from pilocal.training.mlx.checkpoint import find_best, find_checkpoint, restore, save_checkpoint
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizer import make_optimizer
from pilocal.training.mlx.team import Kind, Team
from pilocal.training.mlx.trainer import Trainer
from pilocal.training.row_order import StagePlan
from pilocal.training.tracker import Tracker, tracking


def train(
    model: Any,
    plans: Sequence[StagePlan],
    lora: Lora,
    training: Training,
    *,
    key: str,
    facts: dict[str, Any],
    share: bool,
    progress: Progress,
    warn: Callable[[str], None],
    name: str = "train",
    adaptive: Adaptive | None = None,
    team: Team | None = None,
    track: Callable[[int], Tracker] | None = None,
) -> list[Path]:
    """Train one adapter through all stages and return every file that is final.

    `model` is a frozen mlx-lm model; `key` is a fingerprint of everything that decides the result, `facts` go into
    adapter_config.json, `share` is `Base.shares_prefix`. A checkpoint with the same key is gone on from; `warn` hears
    of a damaged one. With `adaptive` a stage may end early, see `pace`. The processes of a `team` that this one leads
    share the work; `track`, called with the last step that was taken before, opens a tracker that gets every line. The
    first interrupt (Ctrl-C) lets the step finish, saves, and raises KeyboardInterrupt. Raises TrainingError when the
    loss stops being a number, or a process of the team is gone; the last good checkpoint stays.
    """
    config = add_lora(model, lora, training.seed) | facts
    optimizer = make_optimizer(model, training)
    start, ends = 0, list[int]()
    if checkpoint := find_checkpoint([plan.folder / "checkpoint" for plan in plans], key, warn):
        restore(checkpoint, model, optimizer)
        start, ends = checkpoint.step, list(checkpoint.ends)
    trainer = _gather(team or Team(), model, optimizer, lora, training, facts)
    if not share:
        warn(f"{facts['model']}: its layers keep other caches than plain keys and values; every row is computed whole")
    with Interrupt() as interrupt, tracking(track, start) as show:
        course = _Course(trainer, plans, key, share, adaptive, interrupt, show, lambda *said: progress(name, *said))
        for plan in plans[len(ends) :]:
            step = course.run_stage(plan, start, ends)
            checkpoints = plan.folder / "checkpoint"
            if course.patience(plan) is not None and (best := find_best(checkpoints, key, warn)):
                restore(best, model, optimizer)
            # The adapter comes before the checkpoint, which promises that it is there.
            save_adapter(plan.folder, adapter_weights(model), config)
            ends.append(step)
            save_checkpoint(checkpoints, step, key, model, optimizer, ends=ends)
            if interrupt.asked:
                raise KeyboardInterrupt
    files = ("adapters.safetensors", "adapter_config.json", "metrics.jsonl")
    return [plan.folder / file for plan in plans for file in files]


@dataclass(frozen=True, slots=True)
class _Course:
    """What all stages of a training have in common."""

    trainer: Trainer
    plans: Sequence[StagePlan]
    key: str
    share: bool
    """Whether what rows begin with is computed once."""
    adaptive: Adaptive | None
    interrupt: Interrupt
    show: Callable[[int, Mapping[str, Any]], None]
    say: Callable[[int, int, str], None]

    def patience(self, plan: StagePlan) -> int | None:
        """Return the patience with a stage; only the last one may end by it."""
        return self.trainer.training.patience if plan is self.plans[-1] else None

    def run_stage(self, plan: StagePlan, start: int, ends: Sequence[int]) -> int:
        """Take a stage's steps from step `start` of the whole run on; return the step after which it ended."""
        trainer, training, patience = self.trainer, self.trainer.training, self.patience(plan)
        nth, total = len(ends), sum(other.steps for other in self.plans)
        first, last = ends[-1] if ends else 0, sum(other.steps for other in self.plans[: nth + 1])
        log = Log(plan.folder / "metrics.jsonl")
        log.forget_after(start if start > first else -1)
        batches, below = self._lay_out(plan.train, (training.seed, plan.number))
        look = self._look(plan)
        pace = None
        if self.adaptive and plan is not self.plans[-1]:
            pace = Pace(self.adaptive, plan, self._look(self.plans[nth + 1]))
        step = max(start, first)
        ended = log.is_stale(patience)
        while not ended:
            rate = learning_rate(step, total, training)
            line = _measured(trainer, step, rate, batches.at(step - first), below, f"stage {plan.number}")
            step += 1
            line = {"step": step, "learning_rate": rate} | line
            due = pace is not None and (pace.is_due(step - first) or step == last)
            if step == last or step % training.validate_every == 0 or due:
                line["valid_loss"] = look()
                if line["valid_loss"] < log.lowest():
                    self._save(plan, step, ends, best=True)
            if pace and due:
                line["decision"] = pace.decide(line["valid_loss"], last - step)
            log.append(line)
            self.show(plan.number, line)
            self.say(step, total, f"stage {nth + 1}/{len(self.plans)}  loss {line['loss']:.3f}  {log.speed()}")
            moves_on = "decision" in line and line["decision"]["moves_on"]
            ended = step == last or moves_on or log.is_stale(patience)
            if not ended and (self.interrupt.asked or step % training.checkpoint_every == 0):
                self._save(plan, step, ends)
            if self.interrupt.asked and not ended:
                raise KeyboardInterrupt
        return step

    def _lay_out(self, rows: Sequence[Row], seed: Sequence[int]) -> tuple[Batches, Below]:
        """Return the batches of a stage's rows, and what never changes in them."""
        batches = Batches(rows, self.trainer.training.batch_size, seed, share=self.share)
        return batches, Below(self.trainer.model, self.trainer.first, batches.prefix_tokens)

    def _look(self, plan: StagePlan) -> Callable[[], float]:
        """Return a function that looks at the validation loss of a stage's prompt."""
        valid, below = self._lay_out(plan.valid, (0,))
        return lambda: validate(self.trainer, valid.in_order(), below)

    def _save(self, plan: StagePlan, step: int, ends: Sequence[int], *, best: bool = False) -> None:
        model, optimizer = self.trainer.model, self.trainer.optimizer
        save_checkpoint(plan.folder / "checkpoint", step, self.key, model, optimizer, ends=ends, best=best)


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

    def decide(self, valid_loss: float, left: int) -> dict[str, Any]:
        """Return the decision with its figures; `left` is how many steps the stage may still take."""
        ahead = self.look_ahead()
        moves_on = ahead - valid_loss < self.margin or not left
        return {"next_valid_loss": ahead, "margin": self.margin, "steps_left": left, "moves_on": moves_on}


def _gather(
    team: Team, model: Any, optimizer: Any, lora: Lora, training: Training, facts: Mapping[str, Any]
) -> Trainer:
    """Give every process of the team what this one begins with."""
    with team.order(Kind.FIT):
        team.check_same(same_everywhere(facts, lora, training))
        team.copy(model.trainable_parameters())
        team.copy(optimizer.state)
    return Trainer(model, optimizer, training, team)


def same_everywhere(facts: Mapping[str, Any], lora: Lora, training: Training) -> dict[str, str]:
    """Return what the processes of a team must agree on before they train, as SHA-256."""
    made = [version(package) for package in ("pilocal", "mlx", "mlx-lm")]
    return {
        "the version of pilocal, mlx or mlx-lm": fingerprint(made),
        "the base": facts["base_sha256"],
        "[lora] or [training]": fingerprint(asdict(lora), asdict(training)),
    }


def validate(trainer: Trainer, batches: Sequence[Batch], below: Below) -> float:
    """Return the mean loss per completion token over a fixed set of batches."""
    total, count = 0.0, 0.0
    for batch in batches:
        with trainer.team.order(Kind.VALIDATE, batch=batch):
            loss, tokens = trainer.evaluate(batch, below)
        total, count = total + loss, count + tokens
    return total / count


def _measured(trainer: Trainer, step: int, rate: float, batch: Batch, below: Below, stage: str) -> dict[str, Any]:
    """Take a step and return what it showed; raises TrainingError when the loss is not a number."""
    began = time.perf_counter()
    mx.reset_peak_memory()
    with trainer.team.order(Kind.STEP, step=step, rate=rate, batch=batch):
        loss, norm = trainer.step(step, rate, batch, below)
    line = {
        "loss": float(loss),
        "gradient_norm": float(norm),
        "trained_tokens": batch.trained_tokens,
        "prompt_tokens": batch.rendered_tokens - batch.trained_tokens,
        "computed_tokens": batch.computed_tokens,
        "padding": round(batch.padding, 4),
        "seconds": round(time.perf_counter() - began, 4),
        "peak_memory": mx.get_peak_memory(),
    }
    if not (math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"])):
        fix = f"lower learning_rate (now {trainer.training.learning_rate}) and run again"
        where = f"{stage}, step {step + 1}"
        raise TrainingError(where, "the loss is not a number any more", got=line["loss"], fix=fix)
    return line
