"""The training loop: all stages, one adapter, one optimizer, resumable at every checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn

from pilocal.errors import TrainingError
from pilocal.progress import Progress
from pilocal.rundir import replacing
from pilocal.task import Lora, Training
from pilocal.tokens import Row
from pilocal.train.adapter import adapter_weights, add_lora, save_adapter
from pilocal.train.batches import Batch, Batches
from pilocal.train.checkpoint import find_checkpoint, restore, save_checkpoint
from pilocal.train.loss import completion_loss


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's work."""

    train: Sequence[Row]
    valid: Sequence[Row]
    steps: int
    folder: Path
    """Where metrics.jsonl, the checkpoints and the adapter after this stage go."""


def learning_rate(step: int, total: int, training: Training) -> float:
    """Return the rate of a step (from 0) of the whole run: linear warm-up, then cosine to 0 or constant.

    >>> [round(learning_rate(s, 100, Training(learning_rate=1.0, warmup=0.1)), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warmup = max(1, round(training.warmup * total))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.lr_schedule == "constant":
        return training.learning_rate
    through = (step - warmup) / max(1, total - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * through))


def train(
    model: Any,
    plans: Sequence[StagePlan],
    lora: Lora,
    training: Training,
    *,
    key: str,
    facts: dict[str, Any],
    progress: Progress,
    name: str = "train",
) -> list[Path]:
    """Train one adapter through all stages and return every file that is final.

    `model` is a frozen mlx-lm Llama; `key` is a fingerprint of everything that decides the result, `facts` go into
    adapter_config.json. A checkpoint with the same key is gone on from. Raises TrainingError when the loss stops being
    a number; the last good checkpoint stays.
    """
    config = add_lora(model, lora, training.seed) | facts
    total = sum(plan.steps for plan in plans)
    optimizer = optim.AdamW(learning_rate=0.0, weight_decay=training.weight_decay, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    start = 0
    if checkpoint := find_checkpoint([plan.folder / "checkpoint" for plan in plans], key):
        restore(checkpoint, model, optimizer)
        start = checkpoint.step
    step_function = _step_function(model, optimizer, training.clip)
    finals: list[Path] = []
    first = 0
    for number, plan in enumerate(plans):
        last = first + plan.steps
        log = plan.folder / "metrics.jsonl"
        if start < last:
            _forget_after(log, start if start > first else -1)
            batches = Batches(plan.train, training.batch_size, (training.seed, number))
            valid = Batches(plan.valid, training.batch_size, (0,)).in_order()
            for step in range(max(start, first), last):
                optimizer.learning_rate = learning_rate(step, total, training)
                mx.random.seed(training.seed * 1_000_003 + step)
                batch = batches.at(step - first)
                began = time.perf_counter()
                loss, norm = step_function(*_arrays(batch))
                loss_value, norm_value = float(loss), float(norm)
                seconds = time.perf_counter() - began
                if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                    fix = f"lower learning_rate (now {training.learning_rate}) and run again"
                    raise TrainingError(
                        f"stage {number}, step {step + 1}", "the loss is not a number any more", got=loss_value, fix=fix
                    )
                done = step + 1
                line: dict[str, Any] = {
                    "step": done,
                    "loss": loss_value,
                    "gradient_norm": norm_value,
                    "learning_rate": float(optimizer.learning_rate),
                    "trained_tokens": batch.trained_tokens,
                    "seconds": round(seconds, 4),
                }
                if done == last or done % training.validate_every == 0:
                    line["valid_loss"] = validate(model, valid)
                _append(log, line)
                note = f"stage {number + 1}/{len(plans)} loss {loss_value:.3f}"
                progress(name, done, total, note)
                if done == last:  # before the checkpoint, which promises that the stage's adapter is there
                    save_adapter(plan.folder, adapter_weights(model), config)
                if done == last or done % training.checkpoint_every == 0:
                    save_checkpoint(plan.folder / "checkpoint", done, key, model, optimizer)
        finals += [plan.folder / "adapters.safetensors", plan.folder / "adapter_config.json", log]
        first = last
    return finals


def validate(model: Any, batches: Sequence[Batch]) -> float:
    """Return the mean loss per completion token over a fixed set of batches."""
    model.eval()
    total, count = 0.0, 0.0
    for batch in batches:
        loss, tokens = completion_loss(model, *_arrays(batch))
        total += float(loss * tokens)
        count += float(tokens)
    model.train()
    return total / count


def _step_function(model: Any, optimizer: Any, clip: float) -> Any:
    """Return a function of a batch's arrays that takes one optimizer step and returns loss and gradient norm."""
    value_and_grad = nn.value_and_grad(model, completion_loss)
    model.train()

    def step(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        (loss, _), gradients = value_and_grad(model, *arrays)
        gradients, norm = optim.clip_grad_norm(gradients, clip)
        optimizer.update(model, gradients)
        mx.eval(loss, norm, model.trainable_parameters(), optimizer.state)
        return loss, norm

    return step


def _arrays(batch: Batch) -> tuple[mx.array, ...]:
    return tuple(
        mx.array(part)
        for part in (batch.prefix_P, batch.tokens_BT, batch.positions_BC, batch.targets_BC, batch.weights_BC)
    )


def _append(log: Path, line: dict[str, Any]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _forget_after(log: Path, step: int) -> None:
    """Drop the lines of steps that were taken after the checkpoint and will be taken again."""
    if not log.is_file():
        return
    lines = log.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    with replacing(log) as file:
        file.writelines(f"{line}\n" for line in kept)
