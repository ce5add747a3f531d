"""Staged LoRA training on MLX: one adapter and one optimizer from the whole prompt to the bare query."""

from pilocal.base.blas import load_fast_blas
from pilocal.packages import import_mlx_lm

load_fast_blas()  # before any module of this room imports MLX
import_mlx_lm()
