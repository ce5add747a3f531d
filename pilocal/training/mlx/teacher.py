"""What the base says with the whole prompt, in MLX; what all rows begin with is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row, common_prefix
from pilocal.task import Training
from pilocal.training.mlx.batches import make_batch
from pilocal.training.mlx.forward import Past, completion_states, cut_prefix, levels_of, read_prefix
from pilocal.training.mlx.loss import head
from pilocal.training.protocol import TEACHER_BATCH, TEACHER_LOGITS
from pilocal.training.row_order import RowOrder, by_completions

Said = TypeVar("Said")


class MlxTeacher:
    """A base without an adapter."""

    def __init__(self, model: Any, training: Training, *, share: bool = True) -> None:
        """Take a frozen base; without `share` every row's prompt is read anew."""
        self._model, self._training, self._share = model, training, share
        self._read: tuple[tuple[int, ...], list[Past]] = ((), [])
        model.eval()

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        training = self._training

        def soft(log_probs_CV: mx.array, row: Row) -> Soft:
            return soften(np.array(log_probs_CV), training.distill_top_k)

        return self._each(rows, training.distill_temperature, soft)

    def losses(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return the cross-entropy of each completion token of each row, in nats.

        Of what all rows begin with only that is read which the rows before did not begin with.
        """

        def loss(log_probs_CV: mx.array, row: Row) -> NDArray[np.float32]:
            targets_C1 = mx.array(row.completion)[:, None]
            return -np.array(mx.take_along_axis(log_probs_CV, targets_C1, axis=-1))[:, 0]

        return self._each(rows, 1.0, loss, goes_on=True)

    def _each(
        self, rows: Sequence[Row], temperature: float, read: Callable[[mx.array, Row], Said], *, goes_on: bool = False
    ) -> list[Said]:
        """Return what `read` makes of the log-probabilities (C, V) of each row's completion tokens."""
        order = RowOrder(list(rows), TEACHER_BATCH * self._training.batch_size, (0,), share=self._share)
        numbers, found = {id(row): number for number, row in enumerate(rows)}, dict[int, Said]()
        for some in order.in_order():
            states = self._states(some, self._prefix(some[0].tokens[: order.prefix], goes_on), order.prefix)
            for part in by_completions(some, TEACHER_LOGITS // self._model.args.vocab_size):
                logits_NV = head(self._model, mx.concatenate([next(states) for _ in part])).astype(mx.float32)
                logits_NV = logits_NV / temperature
                log_probs_NV = logits_NV - mx.logsumexp(logits_NV, axis=-1, keepdims=True)
                begin = 0
                for row in part:
                    end = begin + len(row.completion)
                    found[numbers[id(row)]] = read(log_probs_NV[begin:end], row)
                    begin = end
        return [found[number] for number in range(len(rows))]

    def _states(self, rows: Sequence[Row], before: list[Past], prefix: int) -> Iterator[mx.array]:
        """Yield the hidden states (C, D) that predict each row's completion tokens, and none of the padding's."""
        batch = make_batch(rows, prefix, share=self._share)
        _, shots_GS, groups_B, tokens_BT, starts_B, targets_BC, *_ = batch.arrays()
        levels = levels_of(mx.array([]), shots_GS, groups_B, tokens_BT)
        states_BCD = completion_states(self._model, levels, starts_B, targets_BC.shape[1], before=before)
        for row, states_CD in zip(rows, states_BCD, strict=True):
            said_CD = states_CD[: len(row.tokens) - row.offset]
            yield said_CD[mx.array(row.places)] if row.gaps else said_CD

    def _prefix(self, tokens: tuple[int, ...], goes_on: bool) -> list[Past]:
        """Return the keys and values of what all rows begin with; the last are kept, for the rows to come.

        With `goes_on` those of the same beginning are taken from them. That may change the last digits, so what is kept
        in a file is read whole.
        """
        if tokens != self._read[0]:
            known, kept = self._read
            shared = common_prefix([tokens, known]) if goes_on and tokens and known else 0
            before = cut_prefix(self._model, kept, shared) if shared else []
            left = tokens[shared if before else 0 :]
            self._read = tokens, read_prefix(self._model, mx.array(left), before) if tokens else []
        return self._read[1]
