"""What it costs, and saves, to shard the base over processes: one step of two processes, the base whole or sharded.

On the shape and the rows of `tests.bench.backends`, as floats and packed; with several GPUs on all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pilocal.base.base import Base
from pilocal.task import Lora
from pilocal.training.backend import PACKED, SHARDED, UNPACKED
from tests.bench.backends import BATCH, TRAINING
from tests.bench.rows import Lengths, make_rows
from tests.bench.shapes import COMMON, SHAPES, write_checkpoint


def sharded(repeats: int = 3) -> dict[str, Any]:
    """Return each arm's seconds a step, and the bytes of weights and at the peak in the process that has the most."""
    import torch

    gpus = torch.cuda.device_count()
    count, device, shape = (gpus, "cuda", "8b") if gpus > 1 else (2, "cpu", "small")
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        base = write_checkpoint(Path(made) / "base", shape, None)
        for weights in (UNPACKED, PACKED):
            for shared in (False, True):
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
                command = [*launch, "-m", "tests.bench.sharded", str(base), made, device, shape, weights, str(repeats)]
                variables = {SHARDED: str(shared).lower(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
                done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | variables)
                if done.returncode:
                    return {"title": "sharded", "failed": done.stderr.strip().splitlines()[-1]}
                found = [json.loads((Path(made) / f"{rank}.json").read_text()) for rank in range(count)]
                arms[f"{weights}, {'sharded' if shared else 'whole'}"] = {
                    name: max(each[name] for each in found) for name in ("seconds", "weights", "peak", "loss")
                }
    return {"title": f"sharded {shape}", "device": device, "processes": count, "batch": BATCH, "arms": arms}


def measure(base: Base, device: str, shape: str, weights: str, repeats: int) -> dict[str, Any]:
    """Take some steps as one of the processes; the first, in which everything is set up, does not count."""
    from pilocal.training.torch_backend.memory import peak_memory
    from pilocal.training.torch_backend.team import TorchTeam, local_device
    from pilocal.training.torch_backend.trainer import TorchTrainer

    vocabulary = int({**COMMON, **SHAPES[shape]}["vocab_size"])
    rows = make_rows(Lengths(), BATCH * (repeats + 1), vocabulary)
    team = TorchTeam.join(device)
    how: dict[str, Any] = {"precision": "bfloat16" if device == "cuda" else "float32", "weights": weights}
    trainer = TorchTrainer(base, Lora(), TRAINING, None, device=local_device(device), share=True, team=team, **how)
    seconds, loss = [], 0.0
    for number in range(repeats + 1):
        began = time.perf_counter()
        loss, _ = trainer.step(number, TRAINING.learning_rate, rows[number * BATCH : (number + 1) * BATCH])
        seconds.append(time.perf_counter() - began)
    held = [value.to_local() if hasattr(value, "to_local") else value for value in trainer.model.parameters()]
    own = sum(value.untyped_storage().nbytes() for value in held)
    found = {"seconds": median(seconds[1:]), "weights": own, "peak": peak_memory(trainer.device), "loss": loss}
    team.leave()
    return found


if __name__ == "__main__":
    path, folder, device, shape, weights, repeats = sys.argv[1:]
    said = json.dumps(measure(Base.at(Path(path)), device, shape, weights, int(repeats)))
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(said)
