"""The loss on exactly the completion tokens: cross-entropy, or the distance from a teacher's probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from pilocal.task import Training
from pilocal.task.tables import JENSEN_SHANNON, REVERSE
from pilocal.training.mlx.forward import completion_states, levels_of

ANSWERS = Training()
"""The settings of a training without a teacher."""

LEAST = -100.0
"""The logarithm of a probability that counts as none."""

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time, 64 MiB in float32; a larger batch is scored in chunks, each computed again backwards."""


def completion_loss(
    model: Any, *arrays: mx.array, first: int = 0, recompute: bool = False, training: Training = ANSWERS
) -> tuple[mx.array, mx.array]:
    """Return the batch's mean loss per completion token and the number of these tokens, each by its weight.

    The arrays are those of `batches.Batch.arrays`; `model` is an mlx-lm model; `recompute` trades time for memory. With
    `first` they hold the hidden states (P, D), (G, S, D) and (B, T, D) that enter that layer in place of tokens. The
    loss is the cross-entropy; where a teacher's probabilities are among the arrays, what `training` makes of them.
    """
    prefix_P, shots_GS, groups_B, tokens_BT, starts_B, targets_BC, weights_BC, *soft = arrays
    levels = levels_of(prefix_P, shots_GS, groups_B, tokens_BT)
    completion = targets_BC.shape[1]
    states_BCD = completion_states(model, levels, starts_B, completion, first=first, recompute=recompute)
    states_ND, targets_N, weights_N = states_BCD.flatten(0, 1), targets_BC.flatten(), weights_BC.flatten()
    soft_N = [array.flatten(0, 1) for array in soft]
    size, chunk = targets_N.size, max(1, LOGITS_AT_ONCE // model.args.vocab_size)
    total = mx.array(0.0)
    for i in range(0, size, chunk):

        def score(states_ND: mx.array, some: slice = slice(i, i + chunk)) -> mx.array:
            logits_NV = head(model, states_ND[some]).astype(mx.float32)
            losses_N = losses(logits_NV, targets_N[some], [array[some] for array in soft_N], training)
            return mx.sum(losses_N * weights_N[some])

        total = total + (score if chunk >= size else mx.checkpoint(score))(states_ND)
    count = weights_BC.sum()
    return total / count, count


def losses(logits_NV: mx.array, targets_N: mx.array, soft: Sequence[mx.array], training: Training) -> mx.array:
    """Return the loss of each token (N,): `soft` holds a teacher's ids and log-probabilities (N, K) and tail (N,)."""
    if not soft:
        return cast(mx.array, cross_entropy(logits_NV, targets_N))
    distance_N = distance(logits_NV, soft, training.distill_temperature, training.distill_divergence)
    weight = training.distill_answers
    if not weight:
        return distance_N
    return (1 - weight) * distance_N + weight * cast(mx.array, cross_entropy(logits_NV, targets_N))


def distance(logits_NV: mx.array, soft: Sequence[mx.array], temperature: float, divergence: str) -> mx.array:
    """Return how far a student's probabilities lie from a teacher's, in nats (N,), times the temperature squared.

    Both are those of the teacher's K likeliest tokens and of all others together. Teacher's are at the temperature
    already. The square keeps the gradient's size (Hinton et al., arXiv 1503.02531).
    """
    ids_NK, teacher_NK, tail_N = soft
    logits_NV = logits_NV / temperature
    whole_N1 = mx.logsumexp(logits_NV, axis=-1, keepdims=True)
    likely_NK = mx.take_along_axis(logits_NV, ids_NK, axis=-1) - whole_N1
    student_NB, teacher_NB = likely_NK, teacher_NK
    if ids_NK.shape[-1] < logits_NV.shape[-1]:
        others_NV = mx.put_along_axis(logits_NV, ids_NK, mx.array(-mx.inf), axis=-1)
        others_N1 = mx.maximum(mx.logsumexp(others_NV, axis=-1, keepdims=True) - whole_N1, LEAST)
        student_NB = mx.concatenate([likely_NK, others_N1], axis=-1)
        teacher_NB = mx.concatenate([teacher_NK, tail_N[:, None]], axis=-1)
    teacher_NB = mx.maximum(teacher_NB, LEAST)
    if divergence == JENSEN_SHANNON:
        middle_NB = mx.logaddexp(student_NB, teacher_NB) - math.log(2)
        found_N = (_kl(teacher_NB, middle_NB) + _kl(student_NB, middle_NB)) / 2
    elif divergence == REVERSE:
        found_N = _kl(student_NB, teacher_NB)
    else:
        found_N = _kl(teacher_NB, student_NB)
    return found_N * temperature**2


def _kl(of_NB: mx.array, to_NB: mx.array) -> mx.array:
    return mx.sum(mx.exp(of_NB) * (of_NB - to_NB), axis=-1)


@mx.custom_function
def cross_entropy(logits_NV: mx.array, targets_N: mx.array) -> mx.array:
    """Return -log p of each target (N,), exact to float32's relative precision even where p is all but 1.

    That is log(1 + exp(z)) with z the logsumexp of the other logits less the target's own. The usual way, the logsumexp
    of all less the target's, takes the difference of two near numbers, and its gradient p - 1 another one: for a token
    of which the model is sure both are rounding errors, the more so where, as in MLX on a CPU, what is added to 1 one
    by one is lost.
    """
    others_N = mx.logsumexp(mx.where(_is_target(logits_NV, targets_N), -mx.inf, logits_NV), axis=-1)
    return mx.logaddexp(others_N - _picked(logits_NV, targets_N), 0.0)


@cross_entropy.vjp
def _cross_entropy_gradient(
    primals: tuple[mx.array, mx.array], cotangent_N: mx.array, loss_N: mx.array
) -> tuple[mx.array, mx.array]:
    """Return p - 1 = expm1(-loss) for the target and p for the others, times the cotangent."""
    logits_NV, targets_N = primals
    others_NV = mx.exp(logits_NV - (loss_N + _picked(logits_NV, targets_N))[:, None])
    chosen_NV = mx.where(_is_target(logits_NV, targets_N), mx.expm1(-loss_N)[:, None], others_NV)
    return chosen_NV * cotangent_N[:, None], mx.zeros_like(targets_N)


def _is_target(logits_NV: mx.array, targets_N: mx.array) -> mx.array:
    return mx.arange(logits_NV.shape[-1]) == targets_N[:, None]


def _picked(logits_NV: mx.array, targets_N: mx.array) -> mx.array:
    picked_N1: mx.array = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)
    return picked_N1[:, 0]


def head(model: Any, states: mx.array) -> mx.array:
    """Return the logits of final hidden states, through the model's own head or its tied embeddings."""
    output = getattr(model, "lm_head", None) or model.model.embed_tokens.as_linear
    logits: mx.array = output(states)
    scaling = getattr(model, "logits_scaling", 1)  # Granite's
    limit: float | None = getattr(model, "final_logit_softcapping", None)  # Gemma 4's
    if limit is not None:
        return mx.tanh(logits / limit) * limit
    return logits if scaling == 1 else logits / scaling
