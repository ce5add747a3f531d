"""The hidden states that the loss looks at, with nothing computed that it cannot see, and nothing twice.

The tokens that all rows begin with run through the model once, then those that groups of rows go on with, then the
rows; keys and values are handed down to whoever has them, and autodiff through that sums the rows' gradients. The idea
is known from reinforcement learning, where the samples of a group share one prompt (Prefix Grouper, arXiv 2506.05433).
The last layer computes queries, output and MLP where a completion token is predicted and nowhere else, and for what is
shared only keys and values. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from pilocal.base.architecture import ARCHITECTURES

LAYERED = {architecture.layered for architecture in ARCHITECTURES.values()}
"""Models whose layers are run one by one here; what sets them apart, biases and norms of heads, their modules tell."""

KeysValues = tuple[mx.array, mx.array]
"""One layer's keys and values, (B, heads, T, head_dim) each."""


class Level(NamedTuple):
    """One level of the tree: sequences of tokens, each behind one of the level above."""

    inputs_NT: mx.array
    """Tokens (N, T), or the hidden states (N, T, D) that enter the first layer to be run."""
    above_N: mx.array | None
    """Which sequence of the level above each one goes on with; None when there is only one, or no level above."""


def levels_of(prefix_P: mx.array, shots_GS: mx.array, groups_B: mx.array, tokens_BT: mx.array) -> list[Level]:
    """Return the levels of a batch, from its first four arrays (`batches.Batch.arrays`)."""
    above = [Level(inputs, None) for inputs in (prefix_P[None], shots_GS) if inputs.size]
    return [*above, Level(tokens_BT, groups_B if len(shots_GS) > 1 else None)]


class PrefixCache:
    """Stands in for a layer's KV cache: lays the keys and values of what stands before each row before its own.

    Without a past it is what records them: `own` is what the layer computed for the tokens that it was given.
    """

    def __init__(self, past: KeysValues | tuple[()] = ()) -> None:
        self.past = past
        self.offset = past[0].shape[2] if past else 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Take the keys and values of the tokens at hand and return all that they attend to."""
        self.own = keys, values
        return _behind(self.past, self.own)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> str:
        """Ask for a causal mask, which MLX aligns to the end of the keys."""
        return "causal"


def read_prefix(model: Any, prefix_P: mx.array, before: Sequence[KeysValues] = ()) -> list[KeysValues]:
    """Return each layer's keys and values for tokens that rows begin with, for `completion_states`, computed now.

    `before` are those of what stands before the tokens, which are returned as well.
    """
    levels = [Level(prefix_P[None], None)]
    layered = runs_layers(model)
    pasts = _descend(model.model, levels, 0, False, before) if layered else _descend_whole(model, levels, before)
    mx.eval(pasts)
    return [past for past in pasts if past]


def completion_states(
    model: Any,
    levels: Sequence[Level],
    starts_B: mx.array,
    completion: int,
    *,
    first: int = 0,
    recompute: bool = False,
    before: Sequence[KeysValues] = (),
) -> mx.array:
    """Return the final hidden states (B, C, D) that predict the `completion` = C tokens after each row's start.

    The last level holds the rows, with what stands before them in the levels above. `starts_B` are the indices into the
    rows' T of the tokens that predict the first completion token. What lies behind a row's end is of no meaning. With
    `first` (only where `runs_layers`) the levels hold hidden states and only the layers from that one on are run. With
    `recompute` a layer's activations are computed again backwards instead of kept (Chen et al., arXiv 1604.06174).
    `before` are the keys and values of what stands before the first level, if that was read already (`read_prefix`).
    """
    rows = levels[-1].inputs_NT
    at_BC = mx.minimum(starts_B[:, None] + mx.arange(completion), rows.shape[1] - 1)
    if runs_layers(model):
        return _layers(model.model, levels, at_BC, first, recompute, before)
    pasts = _descend_whole(model, levels[:-1], before)
    anything = len(levels) > 1 or before
    shared = [PrefixCache(_handed_down(past, levels[-1].above_N)) for past in pasts] if anything else None
    return mx.take_along_axis(model.model(rows, cache=shared), at_BC[..., None], axis=1)


def runs_layers(model: Any) -> bool:
    """Tell whether this is a model with full attention in every layer whose layers are run one by one here."""
    inner = getattr(model, "model", None)
    return f"{type(inner).__module__}.{type(inner).__qualname__}" in LAYERED and getattr(inner, "swa_idx", None) is None


def embedded(inner: Any, tokens: mx.array) -> mx.array:
    """Return the hidden states that enter the first layer, (..., D)."""
    hidden: mx.array = inner.embed_tokens(tokens)
    scale = getattr(inner, "embedding_multiplier", 1)  # Granite's
    return hidden if scale == 1 else hidden * scale


def _descend_whole(
    model: Any, levels: Sequence[Level], before: Sequence[KeysValues] = ()
) -> list[KeysValues | tuple[()]]:
    """Return each layer's keys and values behind some levels, from a model whose layers are not run one by one."""
    pasts: list[KeysValues | tuple[()]] = [*before] or [()] * len(model.layers)
    for tokens_NT, above in levels:
        caches = [PrefixCache(_handed_down(past, above)) for past in pasts]
        model.model(tokens_NT, cache=caches)
        pasts = [_behind(cache.past, cache.own) for cache in caches]
    return pasts


def _descend(
    inner: Any, levels: Sequence[Level], first: int, recompute: bool, before: Sequence[KeysValues] = ()
) -> list[KeysValues | tuple[()]]:
    """Return the keys and values behind some levels, of each layer from `first` on; of the last nothing else is run."""
    *lower, last = inner.layers[first:]
    pasts: list[KeysValues | tuple[()]] = [*before] or [()] * (len(lower) + 1)
    for inputs, above in levels:
        hidden_NTD = inputs if first else embedded(inner, inputs)
        pasts = [_handed_down(past, above) for past in pasts]
        for number, layer in enumerate(lower):
            hidden_NTD, own = _block(layer, hidden_NTD, pasts[number], recompute)
            pasts[number] = _behind(pasts[number], own)
        own = _keys_and_values(last.self_attn, last.input_layernorm(hidden_NTD), _length(pasts[-1]))
        pasts[-1] = _behind(pasts[-1], own)
    return pasts


def _layers(
    inner: Any, levels: Sequence[Level], at_BC: mx.array, first: int, recompute: bool, before: Sequence[KeysValues]
) -> mx.array:
    """Do what the model inside the head does from layer `first` on, at the tokens that matter in the last layer."""
    *lower, last = inner.layers[first:]
    pasts = _descend(inner, levels[:-1], first, recompute, before)
    rows, above = levels[-1]
    hidden_BTD = rows if first else embedded(inner, rows)
    pasts = [_handed_down(past, above) for past in pasts]
    for layer, past in zip(lower, pasts, strict=False):
        hidden_BTD, _ = _block(layer, hidden_BTD, past, recompute)
    states_BCD: mx.array = inner.norm(_completions(last, hidden_BTD, pasts[-1], at_BC))
    return states_BCD


def _block(
    layer: Any, hidden_BTD: mx.array, past: KeysValues | tuple[()], recompute: bool
) -> tuple[mx.array, KeysValues]:
    """Run a layer and return its output with the keys and values of its own tokens."""

    def run(hidden_BTD: mx.array, *past: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        cache = PrefixCache((past[0], past[1]) if past else ())
        out = layer(hidden_BTD, "causal", cache)
        return out, *cache.own

    if recompute and tree_flatten(layer.trainable_parameters()):
        out, keys, values = _computed_again(layer, run, (hidden_BTD, *past))
    else:
        out, keys, values = run(hidden_BTD, *past)
    return out, (keys, values)


def _computed_again(layer: Any, run: Callable[..., tuple[mx.array, ...]], inputs: Sequence[mx.array]) -> Any:
    """Call `run`, which uses `layer`, and keep nothing of it for the gradient but its inputs.

    With mx.checkpoint alone the activations of all layers still live at once: nothing makes the second computation wait
    for the gradient of the layer's output, and nothing has the gradients of a layer's weights, which need them, done
    before the gradient goes on to the layer below. Here both are ordered (16 layers: 59 MiB instead of 284).
    """
    weights = layer.trainable_parameters()
    names, values = zip(*tree_flatten(weights), strict=True)

    def run_with(*arrays: mx.array) -> tuple[mx.array, ...]:
        layer.update(tree_unflatten(list(zip(names, arrays[: len(names)], strict=True))))
        try:
            return run(*arrays[len(names) :])
        finally:
            layer.update(weights)

    again = mx.custom_function(run_with)

    @again.vjp
    def backwards(primals: Any, cotangents: Any, outputs: Any) -> Any:
        primals = mx.depends(list(primals), list(cotangents))
        gradients = mx.vjp(run_with, primals, list(cotangents))[1]
        of_weights, of_inputs = gradients[: len(names)], gradients[len(names) :]
        return of_weights + mx.depends(of_inputs, of_weights)

    return again(*values, *inputs)


def _completions(layer: Any, hidden_BTD: mx.array, past: KeysValues | tuple[()], at_BC: mx.array) -> mx.array:
    """Run a layer with the tokens at `at_BC` asking and all tokens answering; return (B, C, D)."""
    attention, normed_BTD, at_BC1 = layer.self_attn, layer.input_layernorm(hidden_BTD), at_BC[..., None]
    offset = _length(past)
    keys, values = _behind(past, _keys_and_values(attention, normed_BTD, offset))
    queries = attention.q_proj(mx.take_along_axis(normed_BTD, at_BC1, axis=1))
    queries = _heads(queries, attention.n_heads, getattr(attention, "q_norm", None))
    queries = attention.rope(queries, offset=offset + at_BC[:, 0])
    visible_BCS = mx.arange(keys.shape[2]) <= offset + at_BC1
    seen = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=attention.scale, mask=visible_BCS[:, None])
    hidden_BCD = mx.take_along_axis(hidden_BTD, at_BC1, axis=1)
    part = getattr(layer, "residual_multiplier", 1)  # Granite's
    hidden_BCD = hidden_BCD + attention.o_proj(seen.transpose(0, 2, 1, 3).flatten(2)) * part
    out_BCD: mx.array = hidden_BCD + layer.mlp(layer.post_attention_layernorm(hidden_BCD)) * part
    return out_BCD


def _handed_down(past: KeysValues | tuple[()], above_N: mx.array | None) -> KeysValues | tuple[()]:
    """Give each sequence the keys and values of the one that it goes on with."""
    return (past[0][above_N], past[1][above_N]) if past and above_N is not None else past


def _behind(past: KeysValues | tuple[()], own: KeysValues) -> KeysValues:
    """Lay the past's keys and values before each sequence's own; a single past is everyone's."""
    if not past:
        return own

    def join(past: mx.array, own: mx.array) -> mx.array:
        return mx.concatenate([mx.broadcast_to(past, (own.shape[0], *past.shape[1:])), own], axis=2)

    return join(past[0], own[0]), join(past[1], own[1])


def _length(past: KeysValues | tuple[()]) -> int:
    return past[0].shape[2] if past else 0


def _heads(projected_BTD: mx.array, heads: int, norm: Any = None) -> mx.array:
    """(B, T, heads * head_dim) to (B, heads, T, head_dim), each head normed if it is to be."""
    split = projected_BTD.reshape(*projected_BTD.shape[:2], heads, -1)
    return (split if norm is None else norm(split)).transpose(0, 2, 1, 3)


def _keys_and_values(attention: Any, normed_BTD: mx.array, offset: int) -> KeysValues:
    keys = _heads(attention.k_proj(normed_BTD), attention.n_kv_heads, getattr(attention, "k_norm", None))
    return attention.rope(keys, offset=offset), _heads(attention.v_proj(normed_BTD), attention.n_kv_heads)
