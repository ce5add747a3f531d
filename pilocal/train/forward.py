"""The hidden states that the loss looks at, with nothing computed that it cannot see, and nothing twice.

The tokens that all rows begin with run through the model once; their keys and values are broadcast to every row, and
autodiff through the broadcast sums the rows' gradients. The idea is known from reinforcement learning, where the
samples of a group share one prompt (Prefix Grouper, arXiv 2506.05433). The last layer computes queries, output and MLP
where a completion token is predicted and nowhere else, and for the prefix only keys and values. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import LlamaModel

KeysValues = tuple[mx.array, mx.array]
"""One layer's keys and values, (B, heads, T, head_dim) each."""


class PrefixCache:
    """Stands in for a layer's KV cache: lays the prefix's keys and values before those of every row.

    Without a prefix it is what records them: `own` is what the layer computed for the tokens that it was given.
    """

    def __init__(self, prefix: KeysValues | tuple[()] = ()) -> None:
        self.prefix = prefix
        self.offset = prefix[0].shape[2] if prefix else 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Take the keys and values of the tokens at hand and return all that they attend to."""
        self.own = keys, values
        return _behind(self.prefix, self.own)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> str:
        """Ask for a causal mask, which MLX aligns to the end of the keys."""
        return "causal"


def completion_states(
    model: Any,
    prefix_P: mx.array,
    tokens_BT: mx.array,
    starts_B: mx.array,
    completion: int,
    *,
    recompute: bool = False,
) -> mx.array:
    """Return the final hidden states (B, C, D) that predict the `completion` = C tokens after each row's start.

    `prefix_P` holds the P tokens that stand before each row of `tokens_BT`; P may be 0. `starts_B` are the indices into
    T of the tokens that predict the first completion token. What lies behind a row's end is of no meaning. With
    `recompute` a layer's activations are computed again backwards instead of kept (Chen et al., arXiv 1604.06174).
    """
    at_BC = mx.minimum(starts_B[:, None] + mx.arange(completion), tokens_BT.shape[1] - 1)
    if is_plain_llama(model):
        return _llama(model.model, prefix_P, tokens_BT, at_BC, recompute)
    cache = None
    if prefix_P.size:
        recorded = [PrefixCache() for _ in model.layers]
        model.model(prefix_P[None], cache=recorded)
        cache = [PrefixCache(layer.own) for layer in recorded]
    return mx.take_along_axis(model.model(tokens_BT, cache=cache), at_BC[..., None], axis=1)


def is_plain_llama(model: Any) -> bool:
    """Tell whether this is mlx-lm's Llama with full attention in every layer, whose layers are run one by one here."""
    return type(model.model) is LlamaModel and model.model.swa_idx is None


def _llama(llama: Any, prefix_P: mx.array, tokens_BT: mx.array, at_BC: mx.array, recompute: bool) -> mx.array:
    """Do what LlamaModel does, at the tokens that matter in the last layer."""
    *lower, last = llama.layers
    prefixes: list[KeysValues | tuple[()]] = [()] * (len(lower) + 1)
    if prefix_P.size:
        hidden_1PD = llama.embed_tokens(prefix_P[None])
        for number, layer in enumerate(lower):
            hidden_1PD, prefixes[number] = _block(layer, hidden_1PD, (), recompute)
        prefixes[-1] = _keys_and_values(last.self_attn, last.input_layernorm(hidden_1PD), 0)
    hidden_BTD = llama.embed_tokens(tokens_BT)
    for layer, prefix in zip(lower, prefixes, strict=False):
        hidden_BTD, _ = _block(layer, hidden_BTD, prefix, recompute)
    states_BCD: mx.array = llama.norm(_completions(last, hidden_BTD, prefixes[-1], at_BC))
    return states_BCD


def _block(
    layer: Any, hidden_BTD: mx.array, prefix: KeysValues | tuple[()], recompute: bool
) -> tuple[mx.array, KeysValues]:
    """Run a layer and return its output with the keys and values of its own tokens."""

    def run(hidden_BTD: mx.array, *prefix: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        cache = PrefixCache((prefix[0], prefix[1]) if prefix else ())
        out = layer(hidden_BTD, "causal", cache)
        return out, *cache.own

    if recompute and layer.trainable_parameters():
        out, keys, values = _computed_again(layer, run, (hidden_BTD, *prefix))
    else:
        out, keys, values = run(hidden_BTD, *prefix)
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


def _completions(layer: Any, hidden_BTD: mx.array, prefix: KeysValues | tuple[()], at_BC: mx.array) -> mx.array:
    """Run a layer with the tokens at `at_BC` asking and all tokens answering; return (B, C, D)."""
    attention, normed_BTD, at_BC1 = layer.self_attn, layer.input_layernorm(hidden_BTD), at_BC[..., None]
    offset = prefix[0].shape[2] if prefix else 0
    keys, values = _behind(prefix, _keys_and_values(attention, normed_BTD, offset))
    queries = _heads(attention.q_proj(mx.take_along_axis(normed_BTD, at_BC1, axis=1)), attention.n_heads)
    queries = attention.rope(queries, offset=offset + at_BC[:, 0])
    visible_BCS = mx.arange(keys.shape[2]) <= offset + at_BC1
    seen = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=attention.scale, mask=visible_BCS[:, None])
    hidden_BCD = mx.take_along_axis(hidden_BTD, at_BC1, axis=1)
    hidden_BCD = hidden_BCD + attention.o_proj(seen.transpose(0, 2, 1, 3).flatten(2))
    out_BCD: mx.array = hidden_BCD + layer.mlp(layer.post_attention_layernorm(hidden_BCD))
    return out_BCD


def _behind(prefix: KeysValues | tuple[()], own: KeysValues) -> KeysValues:
    """Lay the prefix's keys and values before each row's own."""
    if not prefix:
        return own

    def join(shared: mx.array, own: mx.array) -> mx.array:
        return mx.concatenate([mx.broadcast_to(shared, (own.shape[0], *shared.shape[1:])), own], axis=2)

    return join(prefix[0], own[0]), join(prefix[1], own[1])


def _heads(projected_BTD: mx.array, heads: int) -> mx.array:
    """(B, T, heads * head_dim) to (B, heads, T, head_dim)."""
    return projected_BTD.reshape(*projected_BTD.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _keys_and_values(attention: Any, normed_BTD: mx.array, offset: int) -> KeysValues:
    keys = _heads(attention.k_proj(normed_BTD), attention.n_kv_heads)
    return attention.rope(keys, offset=offset), _heads(attention.v_proj(normed_BTD), attention.n_kv_heads)
