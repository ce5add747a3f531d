"""What the base says with the whole prompt, in MLX; a prompt that several rows share is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row
from pilocal.task import Training
from pilocal.training.mlx.batches import make_batch
from pilocal.training.mlx.forward import Level, completion_states
from pilocal.training.mlx.loss import head
from pilocal.training.row_order import RowOrder


class MlxTeacher:
    """A base without an adapter."""

    def __init__(self, model: Any, training: Training, *, share: bool = True) -> None:
        """Take a frozen base; without `share` every row's prompt is read anew."""
        self._model, self._training, self._share = model, training, share
        model.eval()

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        order = RowOrder(list(rows), self._training.batch_size, (0,), share=self._share)
        found: dict[int, Soft] = {}
        numbers = {id(row): number for number, row in enumerate(rows)}
        for batch in order.in_order():
            for row, soft in zip(batch, self._batch(batch, order.prefix), strict=True):
                found[numbers[id(row)]] = soft
        return [found[number] for number in range(len(rows))]

    def _batch(self, rows: Sequence[Row], prefix: int) -> list[Soft]:
        batch = make_batch(rows, prefix, share=self._share)
        prefix_P, shots_GS, groups_B, tokens_BT, starts_B, targets_BC, _ = batch.arrays()
        levels = [Level(inputs, None) for inputs in (prefix_P[None], shots_GS) if inputs.size]
        levels.append(Level(tokens_BT, groups_B if len(shots_GS) > 1 else None))
        states_BCD = completion_states(self._model, levels, starts_B, targets_BC.shape[1])
        found = []
        for states_CD, row in zip(states_BCD, rows, strict=True):
            logits_CV = head(self._model, states_CD[: len(row.completion)]).astype(mx.float32)
            logits_CV = logits_CV / self._training.distill_temperature
            log_probs_CV = logits_CV - mx.logsumexp(logits_CV, axis=-1, keepdims=True)
            found.append(soften(np.array(log_probs_CV), self._training.distill_top_k))
        return found
