"""A folder that stock mlx_lm.lora trains stage by stage: data, one lora.yaml per stage, each adapter from the last.

The settings are the task's, where mlx_lm.lora has them. It has no gradient clipping, starts a fresh optimizer in
every stage, and its learning rates are straight lines, so each stage gets the line that fits its part of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilocal.flow.formats.order import Order, StageSet, asked_with, stage_line, write_order
from pilocal.prompt.preamble import Preamble
from pilocal.run_folder.adapter import WEIGHTS_FILE, AdapterConfig
from pilocal.run_folder.files import replacing
from pilocal.run_folder.rows import write_records
from pilocal.task import OPTIMIZERS, Lora, Training

ROUND_UP = 32
"""mlx_lm pads rows to multiples of this."""


def write_mlx(
    stages: Sequence[StageSet], folder: Path, model: str, lora: Lora, training: Training, residue: Preamble
) -> Order:
    """Write every stage's train.jsonl, valid.jsonl and lora.yaml into `folder`, and the order in which to train them.

    Paths in a lora.yaml are relative to `folder`, so that it can be copied to another machine; `model` is a directory
    or a Hub id. Raises RunError on a full disk.
    """
    lines, adapter = [], None
    for stage in stages:
        for split, records in (("train", stage.train), ("valid", stage.valid)):
            write_records(folder / str(stage.number), split, records)
        settings = lora_settings(stage, model, adapter, lora, training)
        with replacing(folder / str(stage.number) / "lora.yaml") as file:
            # A JSON value is a YAML value.
            file.writelines(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())
        adapter = f"{settings['adapter_path']}/{WEIGHTS_FILE}"
        epochs = round(stage.epochs(training.batch_size), 2)
        lines.append(stage_line(stage, epochs, config=f"{stage.number}/lora.yaml", iters=settings["iters"]))
    order = Order(folder, lines, _how(folder, lines, residue))
    write_order(order)
    return order


def lora_settings(stage: StageSet, model: str, adapter: str | None, lora: Lora, training: Training) -> dict[str, Any]:
    """Return the content of a stage's lora.yaml; `adapter` is the file that the stage before leaves."""
    # mlx_lm refuses a split that is smaller than a batch.
    wanted = math.ceil(training.batch_size / training.accumulate)
    batch_size = min(wanted, len(stage.train), len(stage.valid))
    parts = math.ceil(training.batch_size / batch_size)
    layers = -1 if lora.layers is None else lora.layers
    return {
        "model": model,
        "train": True,
        "data": str(stage.number),
        **AdapterConfig.of(lora, layers, sorted(lora.linears)).as_json(),
        "mask_prompt": True,
        "max_seq_length": ROUND_UP * (stage.longest // ROUND_UP + 1) + 1,
        "iters": len(stage.rates) * parts,
        "batch_size": batch_size,
        "grad_accumulation_steps": parts,
        "grad_checkpoint": training.recompute,
        "optimizer": training.optimizer,
        "optimizer_config": {training.optimizer: OPTIMIZERS[training.optimizer].mlx_arguments(training.weight_decay)},
        "learning_rate": max(stage.rates),  # what mlx_lm prints; it follows lr_schedule
        "lr_schedule": lr_schedule(stage.rates),
        "seed": training.seed + stage.number,
        "val_batches": -1,
        "steps_per_eval": training.validate_every * parts,
        "save_every": training.checkpoint_every * parts,
        "adapter_path": f"{stage.number}/adapters",
        **({"resume_adapter_file": adapter} if adapter else {}),
    }


def lr_schedule(rates: Sequence[float]) -> dict[str, Any]:
    """Return mlx_lm's description of a stage's learning rates: up to their peak in a line, and down in another.

    >>> lr_schedule([0.5, 1.0, 0.9, 0.7, 0.5])
    {'name': 'linear_schedule', 'arguments': [1.0, 0.5, 2], 'warmup': 1, 'warmup_init': 0.5}
    >>> lr_schedule([0.5, 0.25])
    {'name': 'linear_schedule', 'arguments': [0.5, 0.25, 1]}
    """
    peak = max(range(len(rates)), key=lambda step: rates[step])
    first, highest, last = (float(f"{rate:.6g}") for rate in (rates[0], rates[peak], rates[-1]))
    # mlx_lm stays at the peak for one step more after a warm-up.
    falling = len(rates) - 1 - peak - (peak > 0)
    schedule = {"name": "linear_schedule", "arguments": [highest, last, max(1, falling)]}
    return schedule | ({"warmup": peak, "warmup_init": first} if peak else {})


def _how(folder: Path, lines: Sequence[dict[str, Any]], residue: Preamble) -> list[str]:
    last = lines[-1]["stage"]
    return [
        "train them in this order; each stage starts from the adapter of the stage before:",
        f"cd {folder}",
        *(f"mlx_lm.lora --config {line['config']}" for line in lines),
        f"{last}/adapters is the final adapter: ask it with {asked_with(residue, lines)}",
    ]
