"""What the base says with the whole prompt, in PyTorch; what all rows begin with is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row, common_prefix
from pilocal.training.protocol import TEACHER_BATCH, TEACHER_LOGITS
from pilocal.training.row_order import RowOrder, by_completions
from pilocal.training.torch_backend.trainer import TorchTrainer

Said = TypeVar("Said")


class TorchTeacher:
    """A base whose adapter is 0 still."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer
        self._read: tuple[tuple[int, ...], Any] = ((), None)

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        training = self._trainer.training

        def soft(log_probs_CV: torch.Tensor, row: Row) -> Soft:
            return soften(log_probs_CV.cpu().numpy(), training.distill_top_k)

        return self._each(rows, training.distill_temperature, soft)

    def losses(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return the cross-entropy of each completion token of each row, in nats.

        Of what all rows begin with only that is read which the rows before did not begin with.
        """

        def loss(log_probs_CV: torch.Tensor, row: Row) -> NDArray[np.float32]:
            targets_C1 = torch.tensor(row.completion, device=log_probs_CV.device)[:, None]
            losses_C: NDArray[np.float32] = -log_probs_CV.gather(1, targets_C1)[:, 0].cpu().numpy()
            return losses_C

        return self._each(rows, 1.0, loss, goes_on=True)

    def _each(
        self,
        rows: Sequence[Row],
        temperature: float,
        read: Callable[[torch.Tensor, Row], Said],
        *,
        goes_on: bool = False,
    ) -> list[Said]:
        """Return what `read` makes of the log-probabilities (C, V) of each row's completion tokens."""
        trainer = self._trainer
        share, most = trainer.shares_prefix, TEACHER_LOGITS // trainer.model.config.vocab_size
        order = RowOrder(list(rows), TEACHER_BATCH * trainer.training.batch_size, (0,), share=share)
        numbers, found = {id(row): number for number, row in enumerate(rows)}, dict[int, Said]()
        for some in order.in_order():
            states_ND = trainer.completion_states(some, self._prefix(some[0].tokens[: order.prefix], goes_on))
            for part in by_completions(some, most):
                sizes = [len(row.completion) for row in part]
                now_ND, states_ND = states_ND[: sum(sizes)], states_ND[sum(sizes) :]
                log_probs_NV = torch.log_softmax(trainer.head(now_ND) / temperature, dim=-1)
                for row, log_probs_CV in zip(part, torch.split(log_probs_NV, sizes), strict=True):
                    found[numbers[id(row)]] = read(log_probs_CV, row)
        return [found[number] for number in range(len(rows))]

    def _prefix(self, tokens: tuple[int, ...], goes_on: bool) -> Any:
        """Return the keys and values of what all rows begin with; the last are kept, for the rows to come.

        With `goes_on` those of the same beginning are taken from them. That may change the last digits, so what is kept
        in a file is read whole.
        """
        if tokens != self._read[0]:
            known, kept = self._read
            shared = common_prefix([tokens, known]) if goes_on and tokens and known else 0
            read = self._trainer.read_prefix
            self._read = tokens, read(tokens, kept if shared else None, shared) if tokens else None
        return self._read[1]
