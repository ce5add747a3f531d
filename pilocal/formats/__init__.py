"""The stages' data sets for other trainers: OpenAI's hosted fine-tuning and stock mlx_lm.lora."""

from pilocal.formats.mlx import write_mlx
from pilocal.formats.openai import write_openai
from pilocal.formats.order import Order, StageSet

__all__ = ["Order", "StageSet", "write_mlx", "write_openai"]
