"""What the base says with the whole prompt, in PyTorch; a prompt that several rows share is read once a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row
from pilocal.training.protocol import TEACHER_BATCH
from pilocal.training.torch_backend.trainer import TorchTrainer


class TorchTeacher:
    """A base whose adapter is 0 still."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        training = self._trainer.training
        found = self._log_probs(rows, training.distill_temperature)
        return [soften(log_probs_CV.cpu().numpy(), training.distill_top_k) for log_probs_CV in found]

    def losses(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
        """Return the cross-entropy of each completion token of each row, in nats."""
        found = []
        for row, log_probs_CV in zip(rows, self._log_probs(rows, 1.0), strict=True):
            targets_C1 = torch.tensor(row.completion, device=log_probs_CV.device)[:, None]
            found.append(-log_probs_CV.gather(1, targets_C1)[:, 0].cpu().numpy())
        return found

    def _log_probs(self, rows: Sequence[Row], temperature: float) -> Iterator[torch.Tensor]:
        """Yield the log-probabilities (C, V) of each row's completion tokens."""
        size = TEACHER_BATCH * self._trainer.training.batch_size
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            log_probs_NV = torch.log_softmax(self._trainer.completion_logits(some) / temperature, dim=-1)
            yield from torch.split(log_probs_NV, [len(row.completion) for row in some])
