"""Evaluation: the arms side by side, scored on the test set and timed in llama.cpp."""

from pilocal.base.blas import load_fast_blas

load_fast_blas()  # before any module of this room imports MLX
