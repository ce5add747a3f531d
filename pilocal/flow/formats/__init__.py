"""The stages' data sets for other trainers: OpenAI's hosted fine-tuning and stock mlx_lm.lora."""

from pilocal.flow.formats.mlx import write_mlx
from pilocal.flow.formats.openai import write_openai
from pilocal.flow.formats.order import Order, StageSet

__all__ = ["Order", "StageSet", "write_mlx", "write_openai"]
