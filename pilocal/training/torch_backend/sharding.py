"""A frozen base of which every process holds a part of every layer: PyTorch's FSDP2, by linear layer.

A layer's weights are gathered from all processes when it computes, forwards and again backwards, and let go after it.
Nothing of them is trained, so no gradient is scattered; the adapter is whole in every process. The gradient reaches
the keys of a shared prefix after all else of their block, so that a whole block cannot be gathered and let go at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def sharder(device: torch.device) -> Callable[[torch.nn.Module], None]:
    """Return what leaves this process its part of a layer's weights; every process of the default group calls it.

    Layers other than linear ones and embeddings stay whole: their weights are few.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))

    def shard(layer: torch.nn.Module) -> None:
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)

    # A layer with a bias returns a view. Neither transformers nor peft computes with it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    return shard
