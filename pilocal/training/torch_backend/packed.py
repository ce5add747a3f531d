"""Layers whose weights stay as MLX packs them: the floats of a layer live only while it computes.

The numbers are those of the unpacked base, in a seventh of float32's memory at 4 bits; unpacking them forwards and
again backwards is what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pilocal.training.torch_backend.weights import WORD, dequantize

AT_ONCE = 1 << 26
"""Weights that are floats at a time: a whole layer's, but for the vocabulary's of a large model."""

PARTS = ("weight", "scales", "biases")


class PackedLinear(torch.nn.Linear):
    """A linear layer, frozen; its parameters have no values before a state with MLX's parts is loaded.

    `weight` (out, in * bits / 32) holds words, `scales` and `biases` are (out, in / group_size).
    """

    def __init__(self, layer: torch.nn.Linear, *, bits: int, group_size: int) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.bits = bits
        _empty_parts(self, layer.out_features, layer.in_features, bits, group_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in), in the type of the input."""
        parts = (self.weight, self.scales, self.biases)
        found: torch.Tensor = _Matmul.apply(input, *parts, self.bias, self.bits)  # type: ignore[no-untyped-call]
        return found


class PackedEmbedding(torch.nn.Embedding):
    """An embedding, frozen, with parts like a PackedLinear's; it answers in `dtype`, scaled where the layer's did."""

    def __init__(self, layer: torch.nn.Embedding, *, bits: int, group_size: int, dtype: torch.dtype) -> None:
        super().__init__(layer.num_embeddings, layer.embedding_dim, device="meta")
        self.bits, self.group_size, self.dtype = bits, group_size, dtype
        self.embed_scale: Any = getattr(layer, "embed_scale", None)
        _empty_parts(self, layer.num_embeddings, layer.embedding_dim, bits, group_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., dim) for ids (...)."""
        ids = input.flatten()
        parts = (getattr(self, part)[ids] for part in PARTS)
        found = dequantize(*parts, bits=self.bits, dtype=self.dtype).view(*input.shape, -1)
        return found if self.embed_scale is None else found * self.embed_scale.to(self.dtype)


class _Matmul(torch.autograd.Function):
    """input @ weights.T + bias with weights that are unpacked some rows at a time, and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, *arguments: Any) -> torch.Tensor:
        *parts, bias, ctx.bits = arguments
        ctx.save_for_backward(*parts)
        blocks = _blocks(parts, ctx.bits, input.dtype)
        linear = torch.nn.functional.linear
        made = [linear(input, weights, None if bias is None else bias[rows]) for rows, weights in blocks]
        return torch.cat(made, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        blocks = _blocks(ctx.saved_tensors, ctx.bits, gradient.dtype)
        return sum(gradient[..., rows] @ weights for rows, weights in blocks), *[None] * 5


def _blocks(parts: Sequence[torch.Tensor], bits: int, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of the output and the weights (rows, in) that make them."""
    words = parts[0]
    some = max(1, AT_ONCE * bits // WORD // words.shape[1])
    for i in range(0, len(words), some):
        rows = slice(i, i + some)
        yield rows, dequantize(*(part[rows] for part in parts), bits=bits, dtype=dtype)


def _empty_parts(layer: torch.nn.Module, out: int, into: int, bits: int, group_size: int) -> None:
    words = torch.empty((out, into * bits // WORD), dtype=torch.int32, device="meta")
    groups = torch.empty((out, into // group_size), device="meta")
    for part, empty in zip(PARTS, (words, groups, groups), strict=True):
        setattr(layer, part, torch.nn.Parameter(empty, requires_grad=False))


def keep_packed(model: Any, name: str, grouping: tuple[int, int], dtype: torch.dtype) -> None:
    """Replace the layer of that name by one that takes MLX's parts, packed with `grouping`: (bits, group size)."""
    layer, (bits, group_size) = model.get_submodule(name), grouping
    if isinstance(layer, torch.nn.Embedding):
        made: Any = PackedEmbedding(layer, bits=bits, group_size=group_size, dtype=dtype)
    else:
        made = PackedLinear(layer, bits=bits, group_size=group_size)
    model.set_submodule(name, made)


def tie(embedding: PackedEmbedding, head: torch.nn.Linear) -> PackedLinear:
    """Return an output layer that has the embedding's parts."""
    tied = PackedLinear(head, bits=embedding.bits, group_size=embedding.group_size)
    for part in PARTS:
        setattr(tied, part, getattr(embedding, part))
    return tied
