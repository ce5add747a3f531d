"""Staged LoRA training on PyTorch: the second opinion on MLX's training, and the way onto NVIDIA's machines.

Below the training loop nothing is shared with the MLX backend: weights, model, loss, gradients and the optimizer's step
are computed again, on transformers and peft. Only the order in which the rows come is the same
(`pilocal.training.row_order`).
"""

from pilocal.base.blas import load_fast_blas

# PyTorch on a Linux CPU rounds with the BLAS that was loaded first: the same one whether or not MLX comes before it, so
# that a run ends with the same bytes in either case.
load_fast_blas()
