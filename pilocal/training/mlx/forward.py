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

from pilocal.base.architectures import ARCHITECTURES

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


class Past(NamedTuple):
    """What one layer has of the tokens before others: of all of them, or of the last, as far as its window reaches."""

    keys: mx.array
    values: mx.array
    end: int
    """The position of the first token behind them."""

    def up_to(self, end: int) -> Past:
        """Return what it has of the tokens before a position."""
        kept = self.keys.shape[2] - (self.end - end)
        return Past(self.keys[:, :, :kept], self.values[:, :, :kept], end)

    def reaches(self, end: int, window: int | None) -> bool:
        """Tell whether it has all that a token at a position may see."""
        first = self.end - self.keys.shape[2]
        return first == 0 or (window is not None and first <= end - window + 1)


class Beside(NamedTuple):
    """What a layer takes beside hidden states and what stands before them; nothing, of most models."""

    shared: KeysValues | None = None
    """The same tokens' keys and values in an earlier layer, instead of its own."""
    given_BTP: mx.array | None = None
    """An input of its own from each token."""


class Turn(NamedTuple):
    """A layer where it is run."""

    layer: Any
    window: int | None
    source: int
    """Whose keys and values it takes: its own number, or that of an earlier one."""
    is_last: bool


class PrefixCache:
    """Stands in for a layer's KV cache: lays the keys and values of what stands before each row before its own.

    Without a past it is what records them: `own` is what the layer computed for the tokens that it was given.
    """

    def __init__(self, past: Past | None = None, window: int | None = None) -> None:
        self.past, self.window = past, window
        self.offset = past.end if past else 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Take the keys and values of the tokens at hand and return all that they attend to."""
        self.own = keys, values
        return behind(self.past, self.own, self.window)[:2]

    def mask(self, length: int) -> str | mx.array:
        """Return what each of `length` tokens may see of what `update_and_fetch` returns."""
        seen = within(self.past, self.window)
        before = seen.keys.shape[2] if seen else 0
        if self.window is None or before + length <= self.window:
            return "causal"  # which MLX aligns to the end of the keys
        return _visible(mx.arange(before, before + length), before + length, self.window)


class Answered:
    """Stands in for the KV cache where some tokens of a sequence ask and all have answered already."""

    def __init__(self, answers: KeysValues, offset_B: mx.array) -> None:
        self.answers, self.offset = answers, offset_B

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Return the keys and values of all tokens; those of the asking ones are among them."""
        return self.answers


def read_prefix(model: Any, prefix_P: mx.array, before: Sequence[Past] = ()) -> list[Past]:
    """Return each layer's keys and values for tokens that rows begin with, for `completion_states`, computed now.

    `before` are those of what stands before the tokens, which are returned as well.
    """
    pasts = [past for past in _descend(model.model, [Level(prefix_P[None], None)], 0, False, before) if past]
    mx.eval([past[:2] for past in pasts])
    return pasts


def cut_prefix(model: Any, pasts: Sequence[Past], end: int) -> list[Past]:
    """Return what `read_prefix` would have returned for the tokens before a position; [] where that is not kept."""
    kept = all(past.reaches(end, window) for past, window in zip(pasts, windows(model.model), strict=True))
    return [past.up_to(end) for past in pasts] if kept else []


def completion_states(
    model: Any,
    levels: Sequence[Level],
    starts_B: mx.array,
    completion: int,
    *,
    first: int = 0,
    recompute: bool = False,
    before: Sequence[Past] = (),
) -> mx.array:
    """Return the final hidden states (B, C, D) that predict the `completion` = C tokens after each row's start.

    The last level holds the rows, with what stands before them in the levels above. `starts_B` are the indices into the
    rows' T of the tokens that predict the first completion token. What lies behind a row's end is of no meaning. With
    `first` the levels hold hidden states and only the layers from that one on are run. With `recompute` a layer's
    activations are computed again backwards instead of kept (Chen et al., arXiv 1604.06174). `before` are the keys and
    values of what stands before the first level, if that was read already (`read_prefix`).
    """
    inner, rows, turns = model.model, levels[-1], _turns(model.model, first)
    at_BC = mx.minimum(starts_B[:, None] + mx.arange(completion), rows.inputs_NT.shape[1] - 1)
    pasts = _handed_down(_descend(inner, levels[:-1], first, recompute, before), rows.above_N, turns)
    hidden_BTD, given = _entering(inner, rows, first)
    hidden_BTD, owns = _through(turns[:-1], hidden_BTD, pasts, given, recompute)
    beside = _beside(turns, len(turns) - 1, owns, given)
    states_BCD: mx.array = inner.norm(_completions(turns[-1], hidden_BTD, pasts[-1], at_BC, beside))
    return states_BCD


def takes_tokens(inner: Any) -> bool:
    """Tell whether layers above the first take more than hidden states: inputs of their own, or others' keys."""
    sources = list(getattr(inner, "previous_kvs", []))
    return bool(getattr(inner, "hidden_size_per_layer_input", 0)) or sources != list(range(len(sources)))


def embedded(inner: Any, tokens: mx.array) -> mx.array:
    """Return the hidden states that enter the first layer, (..., D), as mlx-lm's model computes them."""
    hidden: mx.array = inner.embed_tokens(tokens)
    factor: float | None = getattr(inner, "embed_scale", None)  # Gemma 4's
    if factor is not None:
        return hidden * factor
    if ARCHITECTURES[inner.args.model_type].scales_embeddings:
        return hidden * mx.array(inner.args.hidden_size**0.5, mx.bfloat16).astype(hidden.dtype)
    scale = getattr(inner, "embedding_multiplier", 1)  # Granite's
    return hidden if scale == 1 else hidden * scale


def windows(inner: Any) -> list[int | None]:
    """Return how many of the last tokens each layer sees, itself included; None where it sees all."""
    window: int | None = getattr(inner, "window_size", None) or getattr(inner, "sliding_window", None)
    sliding = [
        getattr(layer, "use_sliding", False) or getattr(layer.self_attn, "is_sliding", False) for layer in inner.layers
    ]
    return [window if slides else None for slides in sliding]


def _turns(inner: Any, first: int) -> list[Turn]:
    """Return the layers from `first` on."""
    layers, sources = inner.layers[first:], getattr(inner, "previous_kvs", range(len(inner.layers)))[first:]
    found = zip(layers, windows(inner)[first:], sources, strict=True)
    return [Turn(*each[:2], each[2] - first, number + 1 == len(layers)) for number, each in enumerate(found)]


def _entering(inner: Any, level: Level, first: int) -> tuple[mx.array, list[mx.array | None]]:
    """Return the hidden states that enter the layers of a level, and what each of them takes of its tokens beside."""
    none: list[mx.array | None] = [None] * (len(inner.layers) - first)
    if first:
        return level.inputs_NT, none
    hidden_NTD = embedded(inner, level.inputs_NT)
    if not getattr(inner, "hidden_size_per_layer_input", 0):
        return hidden_NTD, none
    of_tokens = inner._get_per_layer_inputs(level.inputs_NT)
    given_NTLP = inner._project_per_layer_inputs(hidden_NTD, of_tokens)
    return hidden_NTD, [given_NTLP[..., layer, :] for layer in range(len(inner.layers))]


def _descend(
    inner: Any, levels: Sequence[Level], first: int, recompute: bool, before: Sequence[Past] = ()
) -> list[Past | None]:
    """Return the keys and values behind some levels, of each layer from `first` on; of the last nothing else is run."""
    turns = _turns(inner, first)
    pasts: list[Past | None] = [*before] or [None] * len(turns)
    for level in levels:
        hidden_NTD, given = _entering(inner, level, first)
        pasts = _handed_down(pasts, level.above_N, turns)
        _, owns = _through(turns, hidden_NTD, pasts, given, recompute)
        found: list[Past | None] = []
        for number, turn in enumerate(turns):
            own = turn.source == number
            found.append(behind(pasts[number], owns[number], turn.window) if own else found[turn.source])
        pasts = found
    return pasts


def _through(
    turns: Sequence[Turn],
    hidden_NTD: mx.array,
    pasts: Sequence[Past | None],
    given: Sequence[mx.array | None],
    recompute: bool,
) -> tuple[mx.array, list[KeysValues]]:
    """Run layers one after the other; return the last one's output and each one's keys and values."""
    owns: list[KeysValues] = []
    for number, (turn, past) in enumerate(zip(turns, pasts, strict=False)):
        again = recompute and not turn.is_last  # whose output is computed for completions alone
        beside = _beside(turns, number, owns, given)
        hidden_NTD, own = run_layer(turn.layer, hidden_NTD, past, turn.window, again, beside)
        owns.append(own)
    return hidden_NTD, owns


def _beside(turns: Sequence[Turn], number: int, owns: Sequence[KeysValues], given: Sequence[mx.array | None]) -> Beside:
    source = turns[number].source
    return Beside(owns[source] if source < number else None, given[number])


def run_layer(
    layer: Any,
    hidden_BTD: mx.array,
    past: Past | None,
    window: int | None,
    recompute: bool = False,
    beside: Beside = Beside(),  # noqa: B008
) -> tuple[mx.array, KeysValues]:
    """Run a layer and return its output with the keys and values of its own tokens.

    Of what is not used nothing is computed: MLX computes what is asked for.
    """
    inputs: dict[str, Any] = {"hidden": hidden_BTD, "past": past[:2] if past else (), "shared": beside.shared or ()}
    inputs |= {} if beside.given_BTP is None else {"given": beside.given_BTP}
    names, arrays = zip(*tree_flatten(inputs), strict=True)

    def run(*arrays: mx.array) -> tuple[mx.array, ...]:
        known: Any = tree_unflatten(list(zip(names, arrays, strict=True)))
        cache = PrefixCache(past and past._replace(keys=known["past"][0], values=known["past"][1]), window)
        shared, hidden_BTD = known.get("shared"), known["hidden"]
        out = _called(layer, hidden_BTD, cache.mask(hidden_BTD.shape[1]), cache, Beside(shared, known.get("given")))
        return (out,) if shared else (out, *cache.own)

    again = recompute and tree_flatten(layer.trainable_parameters())
    out, *own = _computed_again(layer, run, arrays) if again else run(*arrays)
    return out, beside.shared or (own[0], own[1])


def _called(layer: Any, hidden_BTD: mx.array, mask: Any, cache: Any, beside: Beside) -> mx.array:
    """Call a layer and return its output; Gemma 4's takes more, and returns more, than others do."""
    more: dict[str, Any] = {} if beside.given_BTP is None else {"per_layer_input": beside.given_BTP}
    if beside.shared:
        more |= {"shared_kv": cache.update_and_fetch(*beside.shared), "offset": cache.offset}
    returned = layer(hidden_BTD, mask=mask, cache=None if beside.shared else cache, **more)
    states: mx.array = returned[0] if isinstance(returned, tuple) else returned
    return states


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


def _completions(turn: Turn, hidden_BTD: mx.array, past: Past | None, at_BC: mx.array, beside: Beside) -> mx.array:
    """Run a layer with the tokens at `at_BC` asking and all tokens answering; return (B, C, D)."""
    _, own = run_layer(turn.layer, hidden_BTD, past, turn.window, beside=beside)
    answers, length = behind(past, own, turn.window), hidden_BTD.shape[1]
    before = answers.keys.shape[2] - length
    visible_BCS = _visible(before + at_BC, before + length, turn.window)
    asking_BCD = mx.take_along_axis(hidden_BTD, at_BC[..., None], axis=1)
    if beside.given_BTP is not None:
        beside = beside._replace(given_BTP=mx.take_along_axis(beside.given_BTP, at_BC[..., None], axis=1))
    cache = Answered(answers[:2], answers.end - length + at_BC[:, 0])
    return _called(turn.layer, asking_BCD, visible_BCS[:, None], cache, beside)


def _visible(asking: mx.array, answering: int, window: int | None) -> mx.array:
    """Return which of so many tokens those at some places (...) see: (..., answering)."""
    places, asking = mx.arange(answering), asking[..., None]
    return places <= asking if window is None else (places <= asking) & (places > asking - window)


def _handed_down(pasts: Sequence[Past | None], above_N: mx.array | None, turns: Sequence[Turn]) -> list[Past | None]:
    """Give each sequence the keys and values of the one that it goes on with; who shares them gets the same ones."""
    found: list[Past | None] = []
    for number, past in enumerate(pasts):
        if above_N is None or past is None:
            found.append(past)
        elif (source := turns[number].source) < number:
            found.append(found[source])
        else:
            found.append(Past(past.keys[above_N], past.values[above_N], past.end))
    return found


def within(past: Past | None, window: int | None) -> Past | None:
    """Return what a window lets the tokens behind a past see of it."""
    if past is None or window is None or past.keys.shape[2] < window:
        return past
    first = past.keys.shape[2] - (window - 1)
    return Past(past.keys[:, :, first:], past.values[:, :, first:], past.end)


def behind(past: Past | None, own: KeysValues, window: int | None = None) -> Past:
    """Lay what is seen of the past before each sequence's own keys and values; a single past is everyone's."""
    length = own[0].shape[2]
    if (seen := within(past, window)) is None:
        return Past(*own, length)

    def join(past: mx.array, own: mx.array) -> mx.array:
        return mx.concatenate([mx.broadcast_to(past, (own.shape[0], *past.shape[1:])), own], axis=2)

    return Past(join(seen.keys, own[0]), join(seen.values, own[1]), seen.end + length)
