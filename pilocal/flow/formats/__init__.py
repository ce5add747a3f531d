"""The stages' data sets for other trainers: hosts that fine-tune, and stock mlx_lm.lora."""

from collections.abc import Mapping

from pilocal.flow.formats.bedrock import BEDROCK
from pilocal.flow.formats.hosted import Host, write_hosted
from pilocal.flow.formats.mlx import write_mlx
from pilocal.flow.formats.open_models import FIREWORKS, TOGETHER
from pilocal.flow.formats.openai import OPENAI
from pilocal.flow.formats.order import Order, StageSet

HOSTS: Mapping[str, Host] = {"openai": OPENAI, "bedrock": BEDROCK, "together": TOGETHER, "fireworks": FIREWORKS}
"""Every host by its name in `pilocal stages --format`."""

__all__ = ["HOSTS", "Host", "Order", "StageSet", "write_hosted", "write_mlx"]
