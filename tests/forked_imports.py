"""What the processes of `tests.forked` have imported, in the order in which pilocal imports it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from pilocal.base.base import find_base
from pilocal.base.blas import load_fast_blas
from pilocal.cli import COMMANDS
from pilocal.packages import quiet_bitsandbytes

load_fast_blas()
quiet_bitsandbytes()

for module in (
    *COMMANDS.values(),
    "pilocal.cli.display",
    "pilocal.cli.tables",
    "pilocal.evaluate.scoring.metrics",
    "pilocal.flow.run",
    "pilocal.training.mlx.setup",
    "pilocal.training.torch_backend.setup",
    "llama_cpp",
    "mlx_lm.models.llama",
    "mlx_lm.utils",
    "peft",
    "tests.test_train",
):
    import_module(module)
_ = find_base("starter", Path()).tokenizer
