"""The base rounded once more, to bitsandbytes' NF4: other numbers than MLX's, for its kernels.

The adapter learns to make up for them, and is then served on MLX's: compare the arms before trusting it.
"""

from __future__ import annotations

from typing import Any

import torch

from pilocal.packages import quiet_bitsandbytes


def round_to_nf4(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Replace every linear layer of the model's blocks by bitsandbytes', in place, and bring it to `device`.

    Embeddings and the output layer keep their floats, as in QLoRA (https://arxiv.org/abs/2305.14314).
    """
    quiet_bitsandbytes()
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for block in model.model.layers:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                made = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    layer.bias is not None,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    device="meta",
                )
                made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                made.bias = layer.bias
                block.set_submodule(name, made.to(device))
    model.is_loaded_in_4bit = True  # what peft asks
    model.to(device)
