"""What the base says with the whole prompt, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pilocal.prompt.soft import Soft, soften
from pilocal.prompt.tokens import Row
from pilocal.training.torch_backend.trainer import TorchTrainer


class TorchTeacher:
    """A base whose adapter is 0 still."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return its likeliest tokens at each completion token of each row."""
        training, found = self._trainer.training, list[Soft]()
        for begin in range(0, len(rows), training.batch_size):
            some = rows[begin : begin + training.batch_size]
            logits_NV = self._trainer.completion_logits(some)
            log_probs_NV = torch.log_softmax(logits_NV / training.distill_temperature, dim=-1)
            parts = torch.split(log_probs_NV, [len(row.completion) for row in some])
            found += [soften(part.cpu().numpy(), training.distill_top_k) for part in parts]
        return found
