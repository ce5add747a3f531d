"""The loss: cross-entropy on exactly the completion tokens."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from pilocal.training.mlx.forward import Level, completion_states

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time, 64 MiB in float32; a larger batch is scored in chunks, each computed again backwards."""


def completion_loss(
    model: Any,
    prefix_P: mx.array,
    shots_GS: mx.array,
    groups_B: mx.array,
    tokens_BT: mx.array,
    starts_B: mx.array,
    targets_BC: mx.array,
    weights_BC: mx.array,
    *,
    first: int = 0,
    recompute: bool = False,
) -> tuple[mx.array, mx.array]:
    """Return the mean cross-entropy over the batch's completion tokens and their number.

    The arrays are those of `batches.Batch`; `model` is an mlx-lm model; `recompute` trades time for memory. With
    `first` they hold the hidden states (P, D), (G, S, D) and (B, T, D) that enter that layer in place of tokens.
    """
    levels = [Level(inputs, None) for inputs in (prefix_P[None], shots_GS) if inputs.size]
    levels.append(Level(tokens_BT, groups_B if len(shots_GS) > 1 else None))
    completion = targets_BC.shape[1]
    states_BCD = completion_states(model, levels, starts_B, completion, first=first, recompute=recompute)
    states_ND, targets_N, weights_N = states_BCD.flatten(0, 1), targets_BC.flatten(), weights_BC.flatten()
    size, chunk = targets_N.size, max(1, LOGITS_AT_ONCE // model.args.vocab_size)
    total = mx.array(0.0)
    for i in range(0, size, chunk):

        def score(states_ND: mx.array, some: slice = slice(i, i + chunk)) -> mx.array:
            logits_NV = head(model, states_ND[some]).astype(mx.float32)
            losses_N: Any = cross_entropy(logits_NV, targets_N[some])
            return mx.sum(losses_N * weights_N[some])

        total = total + (score if chunk >= size else mx.checkpoint(score))(states_ND)
    count = weights_BC.sum()
    return total / count, count


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
    return logits
