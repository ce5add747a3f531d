"""The loss on completion tokens: cross-entropy, or the distance from a teacher's probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pilocal.prompt.soft import Soft
from pilocal.task import Training
from pilocal.task.tables import JENSEN_SHANNON, REVERSE

NO_CHANCE = -100.0
"""The logarithm of a probability that counts as none."""


def losses(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, said: Sequence[Soft | None], training: Training
) -> torch.Tensor:
    """Return the loss of each token (N,); `said` is what a teacher says about each row, one after the other.

    The rows are those of one group (`row_order.parted`): all with references, or none.
    """
    soft = [one for one in said if one is not None]
    if len(soft) < len(said):
        return cross_entropy(logits_NV, targets_N)
    found_N = distance(logits_NV, soft, training.distill_temperature, training.distill_divergence)
    weight = training.distill_answers if soft[0].reference else 0.0
    return found_N if not weight else (1 - weight) * found_N + weight * cross_entropy(logits_NV, targets_N)


def distance(logits_NV: torch.Tensor, soft: Sequence[Soft], temperature: float, divergence: str) -> torch.Tensor:
    """Return how far a student's probabilities lie from a teacher's, in nats (N,), times the temperature squared.

    Both are those of the teacher's K likeliest tokens and of all others together.
    """
    device = logits_NV.device
    ids_NK = torch.from_numpy(np.concatenate([one.ids_CK for one in soft]).astype(np.int64)).to(device)
    teacher_NB = torch.from_numpy(np.concatenate([one.log_probs_CK for one in soft])).to(device)
    log_probs_NV = torch.log_softmax(logits_NV / temperature, dim=-1)
    student_NB = log_probs_NV.gather(1, ids_NK)
    if ids_NK.shape[1] < logits_NV.shape[1]:
        tail_N = torch.from_numpy(np.concatenate([one.tail_C for one in soft])).to(device)
        teacher_NB = torch.cat([teacher_NB, tail_N[:, None]], dim=1)
        others_N = log_probs_NV.scatter(1, ids_NK, -torch.inf).logsumexp(1).clamp(min=NO_CHANCE)
        student_NB = torch.cat([student_NB, others_N[:, None]], dim=1)
    teacher_NB = teacher_NB.clamp(min=NO_CHANCE)
    if divergence == JENSEN_SHANNON:
        middle_NB = torch.logaddexp(student_NB, teacher_NB) - math.log(2)
        found_N = (_kl(teacher_NB, middle_NB) + _kl(student_NB, middle_NB)) / 2
    elif divergence == REVERSE:
        found_N = _kl(student_NB, teacher_NB)
    else:
        found_N = _kl(teacher_NB, student_NB)
    return found_N * temperature**2


def _kl(of_NB: torch.Tensor, to_NB: torch.Tensor) -> torch.Tensor:
    return (of_NB.exp() * (of_NB - to_NB)).sum(1)


def cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return -log p of each target (N,), exact to float32's relative precision even where p is all but 1.

    It is softplus of the other logits' logsumexp less the target's. PyTorch's own has p - 1 in its gradient, of which
    little but rounding is left for a token of which the model is sure.
    """
    index_N1 = targets_N[:, None]
    others_N = logits_NV.scatter(1, index_N1, -torch.inf).logsumexp(1)
    return torch.nn.functional.softplus(others_N - logits_NV.gather(1, index_N1)[:, 0])
