"""What the base says with the whole prompt, in MLX; a prompt that several rows share is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row
from pilocal.task import Training
from pilocal.training.mlx.batches import make_batch
from pilocal.training.mlx.forward import completion_states, levels_of
from pilocal.training.mlx.loss import head
from pilocal.training.protocol import TEACHER_BATCH
from pilocal.training.row_order import RowOrder

Said = TypeVar("Said")


class MlxTeacher:
    """A base without an adapter."""

    def __init__(self, model: Any, training: Training, *, share: bool = True) -> None:
        """Take a frozen base; without `share` every row's prompt is read anew."""
        self._model, self._training, self._share = model, training, share
        model.eval()

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        training = self._training

        def soft(log_probs_CV: mx.array, row: Row) -> Soft:
            return soften(np.array(log_probs_CV), training.distill_top_k)

        return self._each(rows, training.distill_temperature, soft)

    def losses(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return the cross-entropy of each completion token of each row, in nats."""

        def loss(log_probs_CV: mx.array, row: Row) -> NDArray[np.float32]:
            targets_C1 = mx.array(row.completion)[:, None]
            return -np.array(mx.take_along_axis(log_probs_CV, targets_C1, axis=-1))[:, 0]

        return self._each(rows, 1.0, loss)

    def _each(self, rows: Sequence[Row], temperature: float, read: Callable[[mx.array, Row], Said]) -> list[Said]:
        """Return what `read` makes of the log-probabilities (C, V) of each row's completion tokens."""
        order = RowOrder(list(rows), TEACHER_BATCH * self._training.batch_size, (0,), share=self._share)
        numbers, found = {id(row): number for number, row in enumerate(rows)}, dict[int, Said]()
        for some in order.in_order():
            for row, states_CD in zip(some, self._states(some, order.prefix), strict=True):
                said_CD = states_CD[: len(row.tokens) - row.offset]
                said_CD = said_CD[mx.array(row.places)] if row.gaps else said_CD
                logits_CV = head(self._model, said_CD).astype(mx.float32) / temperature
                log_probs_CV = logits_CV - mx.logsumexp(logits_CV, axis=-1, keepdims=True)
                found[numbers[id(row)]] = read(log_probs_CV, row)
        return [found[number] for number in range(len(rows))]

    def _states(self, rows: Sequence[Row], prefix: int) -> mx.array:
        """Return the hidden states (B, C, D) that predict the rows' completion tokens."""
        batch = make_batch(rows, prefix, share=self._share)
        prefix_P, shots_GS, groups_B, tokens_BT, starts_B, targets_BC, *_ = batch.arrays()
        levels = levels_of(prefix_P, shots_GS, groups_B, tokens_BT)
        return completion_states(self._model, levels, starts_B, targets_BC.shape[1])
