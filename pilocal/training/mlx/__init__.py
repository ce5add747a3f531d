"""Staged LoRA training on MLX: one adapter and one optimizer from the whole prompt to the bare query."""

from pilocal.base.blas import load_fast_blas

load_fast_blas()  # before any module of this room imports MLX
