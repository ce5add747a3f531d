"""A replay: the first steps of every stage of a training, for any backend, and the trace that a backend leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import InputError, TrainingError
from pilocal.progress import Progress, silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One optimizer step."""

    rate: float
    """The learning rate."""
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class ReplayStage:
    """One stage's steps."""

    number: int
    """The stage's, in the schedule."""
    tau: float
    shots: int
    steps: tuple[ReplayStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Everything that decides what a backend computes, except the adapter that it starts from."""

    base: Base
    lora: Lora
    training: Training
    stages: tuple[ReplayStage, ...]

    @property
    def steps(self) -> int:
        """Number of optimizer steps in all stages."""
        return sum(len(stage.steps) for stage in self.stages)


class Replayer(Protocol):
    """A backend that takes the steps; names and layouts of weights and gradients are mlx-lm's."""

    def gradients(self, rows: Sequence[Row]) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss per completion token, in nats, and its gradient, not clipped."""
        ...

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run; return the loss and the gradient norm, both before it."""
        ...

    def logits(self, row: Row) -> Floats:
        """Return the logits after every token of a row, (tokens, vocabulary)."""
        ...

    def adapter(self) -> dict[str, Floats]:
        """Return the adapter's weights."""
        ...

    def set_adapter(self, adapter: Mapping[str, Floats]) -> None:
        """Replace the adapter's weights; the optimizer keeps its state."""
        ...


@dataclass(slots=True)
class Trace:
    """What one backend computed in a replay."""

    losses: list[float] = field(default_factory=list)
    """Each step's mean loss per completion token, in nats."""
    norms: list[float] = field(default_factory=list)
    """Each step's gradient norm, before clipping."""
    starts: list[dict[str, Floats]] = field(default_factory=list)
    """The adapter before each stage's first step."""
    gradients: list[dict[str, Floats]] = field(default_factory=list)
    """At each stage's first step, of the weights in `starts`."""
    adapter: dict[str, Floats] = field(default_factory=dict)
    """The adapter after the last step."""


def play(
    backend: Replayer,
    replay: Replay,
    progress: Progress = silent,
    name: str = "replay",
    *,
    starts: Sequence[Mapping[str, Floats]] | None = None,
) -> Trace:
    """Take every step of a replay; raises TrainingError if a loss is not a number.

    With another trace's `starts`, each stage's first gradients are computed at the other's weights, so that they do not
    contain how far the two have drifted apart.
    """
    trace = Trace()
    for nth, stage in enumerate(replay.stages):
        own = copied(backend.adapter())
        if starts is not None:
            backend.set_adapter(starts[nth])
        trace.starts.append(own if starts is None else copied(starts[nth]))
        trace.gradients.append(copied(backend.gradients(stage.steps[0].rows)[1]))
        if starts is not None:
            backend.set_adapter(own)
        for step in stage.steps:
            loss, norm = backend.step(len(trace.losses), step.rate, step.rows)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                fix = f"lower learning_rate (now {replay.training.learning_rate})"
                where = f"{name}: stage {stage.number}, step {len(trace.losses) + 1}"
                raise TrainingError(where, "the loss is no longer a number", got=loss, fix=fix)
            trace.losses.append(loss)
            trace.norms.append(norm)
            progress(name, len(trace.losses), replay.steps)
    trace.adapter = copied(backend.adapter())
    return trace


def copied(arrays: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return copies that no later step changes."""
    return {name: np.array(value, dtype=np.float32) for name, value in arrays.items()}


def check_lora(lora: Lora) -> None:
    """Raise InputError if there is dropout, since no two backends share its random numbers."""
    if lora.dropout:
        fix = "set it to 0; both backends' dropout is their framework's own"
        raise InputError("[lora] dropout", "random dropout cannot be replayed", got=lora.dropout, fix=fix)


def check_ids(replay: Replay, where: str) -> None:
    """Raise InputError if a row has a token that the base does not know."""
    known = int(replay.base.config["vocab_size"])
    for stage in replay.stages:
        for step in stage.steps:
            if odd := [token for row in step.rows for token in row.tokens if not 0 <= token < known]:
                fix = "the rows come from another tokenizer; use the base that they were made for"
                what = f"stage {stage.number}: a token beyond the base's vocabulary of {known}"
                raise InputError(where, what, got=odd[0], fix=fix)
