"""The loss: cross-entropy on exactly the completion tokens, with the shared prefix computed once per step.

Both savings are exact. The head runs only where a completion token is predicted. The tokens that all rows begin with
run through the model once; their keys and values are broadcast to every row, and autodiff through the broadcast sums
the rows' gradients. The idea is known from reinforcement learning, where the samples of a group share one prompt
(Prefix Grouper, arXiv 2506.05433).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn


class PrefixCache:
    """Stands in for a layer's KV cache while the prefix runs: keeps its keys and values."""

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take (1, heads, P, head_dim) keys and values, which are also what the prefix attends to."""
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Ask for a causal mask."""
        return None if length == 1 else "causal"


class SharedCache:
    """Stands in for a layer's KV cache while the rows run: lays the prefix before each of them."""

    def __init__(self, prefix: PrefixCache) -> None:
        self.prefix = prefix
        self.offset = prefix.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take (B, heads, T, head_dim) keys and values and return them behind the prefix's."""
        batch = keys.shape[0]

        def join(prefix: mx.array, own: mx.array) -> mx.array:
            return mx.concatenate([mx.broadcast_to(prefix, (batch, *prefix.shape[1:])), own], axis=2)

        return join(self.prefix.keys, keys), join(self.prefix.values, values)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Ask for a causal mask, which MLX aligns to the end of the keys."""
        return "causal"


def completion_loss(
    model: Any,
    prefix_P: mx.array,
    tokens_BT: mx.array,
    positions_BC: mx.array,
    targets_BC: mx.array,
    weights_BC: mx.array,
) -> tuple[mx.array, mx.array]:
    """Return the mean cross-entropy over the batch's completion tokens and their number.

    The arrays are those of `batches.Batch`; `model` is an mlx-lm Llama.
    """
    cache = None
    if prefix_P.size:
        recorded = [PrefixCache() for _ in model.layers]
        model.model(prefix_P[None], cache=recorded)
        cache = [SharedCache(layer) for layer in recorded]
    hidden_BTD = model.model(tokens_BT, cache=cache)
    hidden_BCD = mx.take_along_axis(hidden_BTD, positions_BC[..., None], axis=1)
    logits_BCV = head(model, hidden_BCD).astype(mx.float32)
    losses_BC = nn.losses.cross_entropy(logits_BCV, targets_BC) * weights_BC
    count = weights_BC.sum()
    return losses_BC.sum() / count, count


def head(model: Any, hidden: mx.array) -> mx.array:
    """Return the logits of final hidden states, through the model's own head or its tied embeddings."""
    if model.args.tie_word_embeddings:
        logits: mx.array = model.model.embed_tokens.as_linear(hidden)
    else:
        logits = model.lm_head(hidden)
    return logits
