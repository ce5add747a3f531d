"""The training step of both backends, each with a template that every row computes and with a shared one.

Five arms on the same rows of random tokens, base and LoRA of rank 16, each in a process of its own. With CUDA the shape
is Llama 3.1's 8B and PyTorch computes in bfloat16; without, a small one in float32. MLX keeps the base packed where
`pilocal.base.device.keeps_packed`. Tokens are those of the rendered rows, each whole, whatever was really computed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from pilocal.base.base import Base
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.backend import PACKED, UNPACKED
from tests.bench.rows import Lengths, make_rows
from tests.bench.shapes import COMMON, SHAPES, write_checkpoint

ARMS = {
    "torch": "torch and peft",
    "torch-shared": "the same with a shared prefix",
    "torch-packed-shared": "the same with packed weights",
    "mlx": "mlx, every row whole",
    "mlx-shared": "mlx with a shared prefix",
}
BATCH = 8
TRAINING = Training(batch_size=BATCH, learning_rate=1e-4)

Step = Callable[[int, Sequence[Row]], object]


def backends(repeats: int = 3, shape: str | None = None) -> dict[str, Any]:
    """Return every arm's tokens a second, peak memory in bytes, and speed beside the first."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = shape or ("8b" if device == "cuda" else "small")
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        base = write_checkpoint(Path(made) / "base", shape, None)
        for arm in ARMS:
            command = [sys.executable, "-m", "tests.bench.backends", arm, str(base), device, shape, str(repeats)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            failed = {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
            arms[arm] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
    first = arms["torch"].get("tokens_per_second")
    for arm in arms.values():
        if first and "tokens_per_second" in arm:
            arm["speed"] = arm["tokens_per_second"] / first
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"title": f"backends {shape}", "device": name, "versions": _versions(), "batch": BATCH, "arms": arms}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "peft", "mlx", "mlx-lm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def measure(arm: str, base: Base, device: str, shape: str, repeats: int) -> dict[str, Any]:
    """Take some steps with one arm; the first, in which everything is set up, does not count."""
    vocabulary = int({**COMMON, **SHAPES[shape]}["vocab_size"])
    rows = make_rows(Lengths(), BATCH * (repeats + 1), vocabulary)
    packed = partial(_torch_step, weights=PACKED)
    make: Any = {"torch": _torch_step, "torch-packed": packed, "mlx": _mlx_step}[arm.removesuffix("-shared")]
    step, peak = make(base, rows, device, share=arm.endswith("-shared"))
    seconds = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        step(number, rows[number * BATCH : (number + 1) * BATCH])
        seconds.append(time.perf_counter() - began)
    tokens = BATCH * len(rows[0].tokens)
    return {"tokens_per_second": tokens / median(seconds[1:]), "peak": peak()}


def _torch_step(
    base: Base, rows: Sequence[Row], device: str, *, share: bool, weights: str = UNPACKED
) -> tuple[Step, Callable[[], int]]:
    import torch

    from pilocal.training.torch_backend.memory import peak_memory
    from pilocal.training.torch_backend.trainer import TorchTrainer

    precision = "bfloat16" if device == "cuda" else "float32"
    settings: dict[str, Any] = {"device": device, "precision": precision, "weights": weights, "share": share}
    trainer = TorchTrainer(base, Lora(), TRAINING, None, **settings)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step(number: int, rows: Sequence[Row]) -> object:
        return trainer.step(number, TRAINING.learning_rate, rows)  # returns numbers, so the device is done

    return step, lambda: peak_memory(trainer.device) if device == "cuda" else _resident()


def _mlx_step(base: Base, rows: Sequence[Row], device: str, *, share: bool) -> tuple[Step, Callable[[], int]]:
    from pilocal.base.blas import load_fast_blas

    load_fast_blas()  # before MLX is imported

    from pilocal.base.load import load_base
    from pilocal.training.mlx.adapter import add_lora
    from pilocal.training.mlx.batches import Batches, make_batch
    from pilocal.training.mlx.frozen_layers import Below
    from pilocal.training.mlx.optimizers import make_optimizer
    from pilocal.training.mlx.step import BatchTrainer
    from pilocal.training.mlx.team import MlxTeam

    mx: Any = import_module("mlx.core")
    model = load_base(base)
    add_lora(model, Lora(), seed=0)
    trainer = BatchTrainer(model, make_optimizer(model, TRAINING), TRAINING, MlxTeam())
    batches = Batches(rows, BATCH, (0,), share=share)
    below = Below(model, trainer.first, batches.prefix_tokens)
    mx.reset_peak_memory()

    def step(number: int, rows: Sequence[Row]) -> object:
        batch = make_batch(rows, batches.prefix, share=share)
        return trainer.step(number, TRAINING.learning_rate, batch, below)  # evaluates

    return step, lambda: mx.get_peak_memory() if device == "cuda" else _resident()


def _resident() -> int:
    """Return the most bytes that this process held; from Linux's own account, since a child inherits the other."""
    if sys.platform == "linux":
        return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    arm, base, device, shape, repeats = sys.argv[1:]
    print(json.dumps(measure(arm, Base.at(Path(base)), device, shape, int(repeats))))
