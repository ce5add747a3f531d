"""A frozen base of which every process holds a part of every layer: PyTorch's FSDP2, by linear layer.

A layer's weights are gathered from all processes when it computes, forwards and again backwards, and let go after it.
Nothing of them is trained, so no gradient is scattered; the adapter is whole in every process. The gradient reaches
the keys of a shared prefix after all else of their block, so that a whole block cannot be gathered and let go at once.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

M_MMAP_THRESHOLD = -3
"""What glibc's malloc.h calls the size from which on it asks the system for memory, and gives it back."""


def sharder(device: torch.device) -> Callable[[torch.nn.Module], None]:
    """Return what leaves this process its part of a layer's weights; every process of the default group calls it.

    Layers other than linear ones and embeddings stay whole: their weights are few.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))

    def shard(layer: torch.nn.Module) -> None:
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)

    if device.type == "cpu":
        _give_back_freed_memory()
    # A layer with a bias returns a view. Neither transformers nor peft computes with it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    return shard


def _give_back_freed_memory() -> None:
    """Have glibc return what a layer was gathered in to the system; it would keep almost all of the base for itself."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
