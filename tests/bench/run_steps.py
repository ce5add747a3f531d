"""The training step of a run's own stages: pilocal beside mlx-lm and beside transformers with peft.

Each arm takes the same steps on the same rows of the run, from the same base with the run's `[lora]`, each in a process
of its own. The others compute every row whole, padded to the longest, as their trainers do. PILOCAL_RUN names a run
folder whose stages are rendered.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pilocal.flow.setups import base_for
from pilocal.prompt.tokens import Row
from pilocal.run_folder.folder import RunDir
from pilocal.run_folder.rows import read_rows
from pilocal.task import load_task
from pilocal.training.row_order import RowOrder

RUN = "PILOCAL_RUN"

ARMS = ("pilocal-mlx", "mlx-lm", "pilocal-torch", "pilocal-torch-bfloat16", "peft")

Step = Callable[[int, Sequence[Row]], object]


def run_steps(folder: Path, repeats: int) -> dict[str, Any]:
    """Return by stage every arm's seconds a step and peak memory, and both as multiples of the first arm's."""
    found: dict[str, Any] = {}
    for number in sorted(int(path.name) for path in (folder / "stages").iterdir()):
        arms: dict[str, Any] = {}
        for arm in ARMS:
            command = [sys.executable, "-m", "tests.bench.run_steps", arm, str(folder), str(number), str(repeats)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            failed = {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
            arms[arm] = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
        first = arms[ARMS[0]]
        for arm in arms.values():
            if "seconds" in arm and "seconds" in first:
                arm["times_as_long"] = round(median(arm["seconds"]) / median(first["seconds"]), 2)
                arm["times_the_memory"] = round(arm["peak"] / first["peak"], 2)
        found[f"stage {number}"] = arms
        print(json.dumps({f"stage {number}": arms}), flush=True)
    return found


def take_steps(arm: str, folder: Path, number: int, repeats: int) -> dict[str, Any]:
    """Take an arm's steps on a stage's rows, one to warm up first; the peak is the process's, in bytes."""
    run = RunDir(folder)
    task = load_task(run.find_task())
    base = base_for(task)
    rows = read_rows(run.stage(number), "train", base.tokenizer)
    order = RowOrder(rows, task.training.batch_size, (task.training.seed, number))
    batches = [order.rows_at(step) for step in range(repeats + 1)]
    step = MAKE[arm](base, task, order.prefix)
    seconds = []
    for at, batch in enumerate(batches):
        began = time.perf_counter()
        step(at, batch)
        seconds.append(round(time.perf_counter() - began, 3))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds[1:], "peak": size, "tokens": [sum(len(row.tokens) for row in b) for b in batches[1:]]}


def pilocal_mlx(base: Any, task: Any, prefix: int) -> Step:
    """pilocal's step in MLX."""
    from pilocal.base.blas import load_fast_blas

    load_fast_blas()
    from pilocal.training.mlx.trainer import MlxTrainer

    trainer, stages = MlxTrainer(base, task.lora, task.training), dict[tuple[int, ...], Any]()

    def step(number: int, rows: Sequence[Row]) -> None:
        shared = rows[0].tokens[:prefix]  # the same in every step
        stages.setdefault(shared, trainer.stage(shared)).step(number, task.training.learning_rate, rows)

    return step


def mlx_lm(base: Any, task: Any, prefix: int) -> Step:
    """mlx-lm's own: its batches of whole rows, its loss, compiled, with AdamW."""
    from pilocal.base.blas import load_fast_blas

    load_fast_blas()
    from functools import partial

    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx.nn.utils import value_and_grad
    from mlx_lm.tuner.trainer import default_loss, iterate_batches

    from pilocal.base.load import load_base
    from pilocal.training.mlx.adapter import add_lora

    model = load_base(base)
    add_lora(model, task.lora, task.training.seed)
    optimizer = optim.AdamW(learning_rate=task.training.learning_rate)
    optimizer.init(model.trainable_parameters())
    gradients_of = value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]
    model.train()

    @partial(mx.compile, inputs=state, outputs=state)
    def taken(batch: mx.array, lengths: mx.array) -> mx.array:
        loss: mx.array
        (loss, _), gradients = gradients_of(model, batch, lengths)
        optimizer.update(model, gradients)
        return loss

    def step(number: int, rows: Sequence[Row]) -> None:
        pairs = [(list(row.tokens), row.offset) for row in rows]
        mx.eval(state, taken(*next(iterate_batches(pairs, len(pairs), 1 << 20))))

    return step


def pilocal_torch(base: Any, task: Any, prefix: int, precision: str = "float32") -> Step:
    """pilocal's step in PyTorch."""
    from pilocal.training.torch_backend.adapter import draw
    from pilocal.training.torch_backend.trainer import TorchTrainer

    trainer = TorchTrainer(base, task.lora, task.training, None, share=True, precision=precision)
    trainer.set_adapter(draw(trainer.shapes, 0))
    return lambda number, rows: trainer.step(number, task.training.learning_rate, rows)


def pilocal_torch_bfloat16(base: Any, task: Any, prefix: int) -> Step:
    """pilocal's step in PyTorch, the base in bfloat16."""
    return pilocal_torch(base, task, prefix, "bfloat16")


def peft(base: Any, task: Any, prefix: int) -> Step:
    """What a user of transformers and peft writes: rows padded on the right, the prompt's labels ignored, AdamW."""
    import torch
    from peft import get_peft_model

    from pilocal.training.torch_backend.model import load_model, lora_config

    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    model = get_peft_model(model, lora_config(model, task.lora))
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=task.training.learning_rate)

    def step(number: int, rows: Sequence[Row]) -> None:
        longest = max(len(row.tokens) for row in rows)
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row.tokens)] = torch.tensor(row.tokens)
            labels[place, row.offset : len(row.tokens)] = torch.tensor(row.completion)
            mask[place, : len(row.tokens)] = 1
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


MAKE: dict[str, Callable[[Any, Any, int], Step]] = dict(
    zip(ARMS, (pilocal_mlx, mlx_lm, pilocal_torch, pilocal_torch_bfloat16, peft), strict=True)
)

if __name__ == "__main__":
    print(json.dumps(take_steps(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
