"""MLX's training a step at a time: rows go in, numbers come out, as `pilocal parity` replays a run with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ModelError
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.mlx.adapter import adapter_weights, add_lora
from pilocal.training.mlx.batches import Batch, Floats, make_batch
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizer import make_optimizer
from pilocal.training.mlx.team import Team
from pilocal.training.mlx.trainer import Trainer
from pilocal.training.row_order import common_prefix


class MlxTrainer:
    """A base with an adapter and a fresh optimizer, alone; names and layouts of weights are mlx-lm's."""

    def __init__(self, base: Base, lora: Lora, training: Training, initial: Mapping[str, Floats] | None = None) -> None:
        """Load the base and begin with `initial`, or as a run begins where that is None.

        Raises ModelError when `initial` does not fit the base, InputError when `lora` does not.
        """
        self._model = load_base(base, precision=training.precision)
        self.config = add_lora(self._model, lora, training.seed)
        """adapter_config.json's content."""
        self.share = base.shares_prefix
        """Whether rows are computed together, which has a part in their order."""
        if initial is not None:
            self.set_adapter(initial)
        self._trainer = Trainer(self._model, make_optimizer(self._model, training), training, Team())
        self._below = Below(self._model, self._trainer.first, ())
        self._prefix: tuple[int, ...] = ()

    def set_adapter(self, adapter: Mapping[str, Floats]) -> None:
        """Take other weights for the adapter; raises ModelError when they do not fit."""
        shapes = {name: value.shape for name, value in adapter_weights(self._model).items()}
        odd = [name for name in sorted({*shapes, *adapter}) if name not in adapter or name not in shapes]
        odd += [name for name, value in adapter.items() if name in shapes and value.shape != shapes[name]]
        if odd:
            raise ModelError("adapter", "its weights do not fit [lora] and the base", got=odd[0], fix="make it again")
        self._model.load_weights([(name, mx.array(value)) for name, value in adapter.items()], strict=False)
        mx.eval(self._model.parameters())

    def gradients(self, rows: Sequence[Row]) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss per completion token, in nats, and its gradient, not clipped."""
        loss, gradients = self._trainer.gradients(*self._laid_out(rows))
        return float(loss), {name: np.array(value) for name, value in tree_flatten(gradients)}

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run; return the loss and the gradient norm, both before it."""
        loss, norm = self._trainer.step(number, rate, *self._laid_out(rows))
        return float(loss), float(norm)

    def logits(self, row: Row) -> Floats:
        """Return the logits behind every token of a row, (tokens, vocabulary)."""
        self._model.eval()
        logits_TV = self._model(mx.array([row.tokens]))[0].astype(mx.float32)
        self._model.train()
        return np.array(logits_TV)

    def adapter(self) -> dict[str, Floats]:
        """Return the adapter's weights."""
        return {name: np.array(value) for name, value in adapter_weights(self._model).items()}

    def _laid_out(self, rows: Sequence[Row]) -> tuple[Batch, Below]:
        batch = make_batch(rows, common_prefix(rows) if self.share else 0, share=self.share)
        prefix = tuple(batch.prefix_P.tolist())
        if prefix != self._prefix:
            self._prefix, self._below = prefix, Below(self._model, self._trainer.first, prefix)
        return batch, self._below
