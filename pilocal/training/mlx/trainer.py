"""MLX's side of a training: rows go in, numbers come out; names and layouts of weights are mlx-lm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ModelError
from pilocal.prompt.tokens import Row
from pilocal.run_folder.adapter import Adapter
from pilocal.task import Lora, Training
from pilocal.training.mlx.adapter import adapter_weights, add_lora, save_tensors
from pilocal.training.mlx.batches import Batch, Floats, make_batch
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizers import make_optimizer
from pilocal.training.mlx.step import BatchTrainer
from pilocal.training.mlx.team import MlxTeam
from pilocal.training.row_order import parted, shared_prefix

SAID_ROOM = 8
"""What lies below the adapter for rows that a model said may take this part of the memory of the others'."""


class MlxTrainer:
    """A base with an adapter and its optimizer, alone or as one process of a team."""

    shares_prefix = True

    def __init__(
        self,
        base: Base,
        lora: Lora,
        training: Training,
        initial: Mapping[str, Floats] | None = None,
        *,
        team: MlxTeam | None = None,
    ) -> None:
        """Load the base and begin with `initial`, or as a run begins where that is None.

        Raises ModelError when `initial` does not fit the base, InputError when `lora` does not.
        """
        self._base, self.training, self.team = base, training, team or MlxTeam()
        self._model = load_base(base, precision=training.precision)
        self.config = add_lora(self._model, lora, training.seed)
        """The adapter's settings."""
        self._optimizer = make_optimizer(self._model, training)
        if initial is not None:
            self.set_adapter(initial)
        self._begin()

    def _begin(self) -> None:
        """Make what takes the steps; a compiled step knows the optimizer's state by its place, so after each change."""
        self.batches = BatchTrainer(self._model, self._optimizer, self.training, self.team)
        self._stage: MlxStage | None = None

    def stage(self, prefix: Sequence[int]) -> MlxStage:
        """Return what trains on rows that all begin with `prefix`."""
        return MlxStage(self, tuple(prefix))

    def below(self, prefix: Sequence[int], room: int | None = None) -> Below:
        """Return what lies below the adapter, for rows that begin with `prefix`; `room` is as for `Below`."""
        return Below(self._model, self.batches.first, prefix, room)

    def adapter(self) -> dict[str, Floats]:
        """Return the adapter's weights."""
        return {name: np.asarray(value) for name, value in adapter_weights(self._model).items()}

    def set_adapter(self, adapter: Mapping[str, Floats]) -> None:
        """Take other weights for the adapter; raises ModelError when they do not fit."""
        shapes = {name: value.shape for name, value in adapter_weights(self._model).items()}
        odd = [name for name in sorted({*shapes, *adapter}) if name not in adapter or name not in shapes]
        odd += [name for name, value in adapter.items() if name in shapes and value.shape != shapes[name]]
        if odd:
            raise ModelError("adapter", "its weights do not fit [lora] and the base", got=odd[0], fix="make it again")
        self._model.load_weights([(name, mx.array(value)) for name, value in adapter.items()], strict=False)
        mx.eval(self._model.parameters())

    def optimizer_state(self) -> dict[str, NDArray[Any]]:
        """Return what the optimizer remembers."""
        return {name: np.asarray(value) for name, value in dict(tree_flatten(self._optimizer.state)).items()}

    def restore(self, adapter: Mapping[str, Floats], optimizer: Mapping[str, NDArray[Any]]) -> None:
        """Take other weights for the adapter, and what the optimizer remembered with them."""
        self.set_adapter(adapter)
        self._optimizer.state = tree_unflatten([(name, mx.array(value)) for name, value in optimizer.items()])
        mx.eval(self._optimizer.state)
        self._begin()

    def meet(self) -> None:
        """Take the leader's weights and what its optimizer remembers; every process of the team calls it."""
        weights, state = self.team.copy(self._model.trainable_parameters()), self.team.copy(self._optimizer.state)
        if self.team.rank:
            self._model.update(weights)
            self._optimizer.state = state
            self._begin()

    def save(self, folder: Path) -> None:
        """Write the adapter, which names the base."""
        config = replace(self.config, model=self._base.model, base_sha256=self._base.sha256)
        Adapter(config=config, tensors=self.adapter()).write(folder, save_tensors)

    def reset_peak_memory(self) -> None:
        """Begin to measure anew."""
        mx.reset_peak_memory()

    def peak_memory(self) -> int:
        """Return the bytes at the peak since `reset_peak_memory`."""
        return int(mx.get_peak_memory())

    def gradients(self, rows: Sequence[Row]) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss per completion token, in nats, and its gradient, not clipped."""
        stage = self._stage_of(rows)
        batch, *others = stage.batches(rows)
        loss, gradients = self.batches.gradients(*batch, *others)
        return float(loss), {name: np.array(value) for name, value in dict(tree_flatten(gradients)).items()}

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run; return the loss and the gradient norm, both before it."""
        return self._stage_of(rows).step(number, rate, rows)

    def logits(self, row: Row) -> Floats:
        """Return the logits behind every token of a row, (tokens, vocabulary)."""
        self._model.eval()
        logits_TV = self._model(mx.array([row.tokens]))[0].astype(mx.float32)
        self._model.train()
        return np.array(logits_TV)

    def _stage_of(self, rows: Sequence[Row]) -> MlxStage:
        """Return what trains on rows that begin as these do, with all that they share."""
        alike = parted(rows)[0]
        prefix = alike[0].tokens[: shared_prefix(alike)]
        if self._stage is None or self._stage.prefix != prefix:
            self._stage = self.stage(prefix)
        return self._stage


class MlxStage:
    """Trains on rows that all begin with the same tokens; what lies below the adapter is computed once for them.

    What a model said (`Row.is_said`) may begin with others.
    """

    def __init__(self, trainer: MlxTrainer, prefix: tuple[int, ...]) -> None:
        self.trainer, self.prefix = trainer, prefix
        self.below = trainer.below(prefix)
        self._said = trainer.below((), room=self.below.room // SAID_ROOM)
        self._last: tuple[Sequence[Row], list[tuple[Batch, Below]]] | None = None

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run at a learning rate; return the loss and the gradient norm."""
        batch, *others = self.batches(rows)
        loss, norm = self.trainer.batches.step(number, rate, *batch, *others)
        return float(loss), float(norm)

    def evaluate(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the summed loss of the rows' completion tokens and their number."""
        found = [self.trainer.batches.evaluate(*batch) for batch in self.batches(rows)]
        return sum(loss for loss, _ in found), sum(tokens for _, tokens in found)

    def computed_tokens(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Return how many tokens a step runs through the model and how many of them are padding."""
        parts = [part for batch, _ in self.batches(rows) for part in batch.parts(1)]
        return sum(part.computed_tokens for part in parts), sum(part.padding for part in parts)

    def batches(self, rows: Sequence[Row]) -> list[tuple[Batch, Below]]:
        """Lay the rows out, each group with what lies below the adapter for it; the last ones stay laid out."""
        if self._last is None or self._last[0] is not rows:
            self._last = rows, [self._laid_out(group) for group in parted(rows)]
        return self._last[1]

    def _laid_out(self, group: Sequence[Row]) -> tuple[Batch, Below]:
        prefix, below = (0, self._said) if group[0].is_said else (len(self.prefix), self.below)
        return make_batch(group, prefix), below
