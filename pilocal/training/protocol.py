"""What the loop asks of a backend: a setup that makes a trainer, and a trainer that takes steps.

Names and layouts of an adapter's weights are mlx-lm's everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pilocal.progress import Progress
from pilocal.prompt.soft import Soft
from pilocal.prompt.tokens import Row
from pilocal.task import Training
from pilocal.training.checkpoint import Arrays, Checkpoint
from pilocal.training.memory import Forecast
from pilocal.training.row_order import StagePlan
from pilocal.training.team import Team


class StageTrainer(Protocol):
    """Trains on rows that all begin with the same tokens, and keeps between steps what those decide.

    Every process of a team calls the same methods with the same rows; each computes its part, the gradients are added
    up, and each takes the same step.
    """

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run at a learning rate; return the loss and the gradient norm.

        The loss is the mean per completion token, each by its row's weight, in nats, of several groups of rows as
        `row_order.parted` says; both are those before the step, the norm before clipping.
        """

    def evaluate(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the summed loss of the rows' completion tokens and their number, or what they count together."""

    def computed_tokens(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Return how many tokens a step runs through the model, in all processes, and how many of them are padding."""


class Trainer(Protocol):
    """A base with an adapter and an optimizer."""

    @property
    def shares_prefix(self) -> bool:
        """Whether what rows begin with together counts for their order, see `row_order.RowOrder`."""

    def stage(self, prefix: Sequence[int]) -> StageTrainer:
        """Return what trains on rows that all begin with the tokens `prefix`."""

    def adapter(self) -> Arrays:
        """Return the adapter's weights."""

    def optimizer_state(self) -> Arrays:
        """Return what the optimizer remembers."""

    def restore(self, adapter: Arrays, optimizer: Arrays) -> None:
        """Take other weights for the adapter, and what the optimizer remembered with them."""

    def save(self, folder: Path) -> None:
        """Write the adapter, which names the base."""

    def reset_peak_memory(self) -> None:
        """Begin to measure anew, where that is possible."""

    def peak_memory(self) -> int:
        """Return the bytes at the peak since `reset_peak_memory`, or of the whole process."""


T = TypeVar("T", bound=Trainer)


TEACHER_BATCH = 4
"""How many times `[training] batch_size` a teacher reads at once: it keeps nothing for a gradient, and what all rows
begin with is read once."""

TEACHER_LOGITS = 1 << 24
"""Logits that a teacher holds at a time, 64 MiB in float32."""


class Teacher(Protocol):
    """The base without an adapter, which reads whole prompts."""

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row, as `[training]` asks for them."""

    def losses(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return the cross-entropy of each completion token of each row, in nats."""


class Setup(Protocol[T]):
    """What every process of a training has to have itself."""

    @property
    def name(self) -> str:
        """The backend's, one of `backend.MLX` and `backend.TORCH`."""

    @property
    def training(self) -> Training:
        """The task's `[training]`."""

    @property
    def team(self) -> Team:
        """The processes that share the work."""

    def plan(self, plans: Sequence[StagePlan], *, probe: bool, progress: Progress) -> Forecast:
        """Return what the training will need; a `probe` takes one real step, where the backend has one.

        Raises InputError when `[lora]` does not fit the base.
        """

    def lead(self, checkpoint: Checkpoint | None, plans: Sequence[StagePlan], warn: Callable[[str], None]) -> T:
        """Order the team to begin and return a trainer in the state of `checkpoint`, or a fresh one.

        Raises InputError when `[lora]` does not fit the base, TrainingError when the processes do not agree.
        """

    def settle(self, step: int, resumed: bool) -> None:
        """Suit the machine as it is now, or as it was the first time if the training is `resumed` after this step.

        Called before the first step of a stage and after every checkpoint.
        """

    def join(self) -> T:
        """Return a trainer in the leader's state; what the other processes do when they are ordered to begin.

        Raises TrainingError when the processes do not agree.
        """

    def teacher(self) -> Teacher:
        """Load the base as it is; raises ModelError for damaged weights."""

    def finish(self, trainer: T) -> list[Path]:
        """Write what this backend has beside the stages' files once the training is over; return its files."""
