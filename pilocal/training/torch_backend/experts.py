"""A layer's experts as transformers has them: two tensors, with gate and up in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch

from pilocal.base.architecture import expert_of

PARTS = {"gate_proj", "up_proj", "down_proj"}


def stack_experts(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights with their names, those of experts under transformers' names, (experts, out, in).

    They come as MLX has them, in three tensors, or as Hugging Face's files do, each expert's alone. Those of a layer
    come one after the other.
    """
    for layer, some in groupby(weights, key=lambda one: _layer_of(one[0])):
        if layer is None:
            yield from some
        else:
            yield from _stacked(layer, some)


def _layer_of(name: str) -> str | None:
    """Return the module of whose experts a tensor is."""
    alone = expert_of(name)
    module, _, inner = (alone[0] if alone else name).partition(".switch_mlp.")
    return module if inner else None


def _stacked(layer: str, some: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    found: dict[str, torch.Tensor] = {}
    single: dict[str, dict[int, torch.Tensor]] = {}
    for name, weight in some:
        if alone := expert_of(name):
            single.setdefault(alone[0].split(".")[-2], {})[alone[1]] = weight
        else:
            found[name.split(".")[-2]] = weight
    found |= {part: torch.stack([weights[number] for number in sorted(weights)]) for part, weights in single.items()}
    if set(found) != PARTS:  # whoever takes them says which are missing
        yield from ((f"{layer}.experts.{part}", weight) for part, weight in found.items())
        return
    yield f"{layer}.experts.gate_up_proj", torch.cat([found["gate_proj"], found["up_proj"]], dim=1)
    yield f"{layer}.experts.down_proj", found["down_proj"]
