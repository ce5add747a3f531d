"""Staged LoRA training on PyTorch: the second opinion on MLX's training, and the way onto NVIDIA's machines.

From the token rows down nothing is shared with the MLX backend: weights, model, loss, optimizer and loop are written
again, on transformers and peft. Only the order in which the rows come is the same (`pilocal.training.row_order`).
"""
