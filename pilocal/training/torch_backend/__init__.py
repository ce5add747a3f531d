"""Staged LoRA training on PyTorch: the second opinion on MLX's training, and the way onto NVIDIA's machines.

Below the training loop nothing is shared with the MLX backend: weights, model, loss, gradients and the optimizer's step
are computed again, on transformers and peft. Only the order in which the rows come is the same
(`pilocal.training.row_order`).
"""

from pilocal.packages import keep_torch_apart

# Before any module of this room imports PyTorch: a run ends with the same bytes whether or not MLX was there first.
keep_torch_apart()
