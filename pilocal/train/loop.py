"""The training loop: all stages, one adapter, one optimizer, resumable at every checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from pilocal.errors import TrainingError
from pilocal.progress import Progress
from pilocal.task import Lora, Training
from pilocal.tokens import Row
from pilocal.train.adapter import adapter_weights, add_lora, save_adapter
from pilocal.train.batches import Batch, Batches
from pilocal.train.below import Below, first_adapted
from pilocal.train.checkpoint import find_best, find_checkpoint, restore, save_checkpoint
from pilocal.train.forward import can_share
from pilocal.train.interrupt import Interrupt
from pilocal.train.log import Log
from pilocal.train.loss import completion_loss
from pilocal.train.optimizer import learning_rate, make_optimizer, make_step


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage's work."""

    train: Sequence[Row]
    valid: Sequence[Row]
    steps: int
    folder: Path
    """Where metrics.jsonl, the checkpoints and the adapter after this stage go."""


def train(
    model: Any,
    plans: Sequence[StagePlan],
    lora: Lora,
    training: Training,
    *,
    key: str,
    facts: dict[str, Any],
    progress: Progress,
    warn: Callable[[str], None],
    name: str = "train",
) -> list[Path]:
    """Train one adapter through all stages and return every file that is final.

    `model` is a frozen mlx-lm Llama; `key` is a fingerprint of everything that decides the result, `facts` go into
    adapter_config.json. A checkpoint with the same key is gone on from; `warn` hears of a damaged one. The first
    interrupt (Ctrl-C) lets the step finish, saves, and raises KeyboardInterrupt. Raises TrainingError when the loss
    stops being a number; the last good checkpoint stays.
    """
    config = add_lora(model, lora, training.seed) | facts
    total = sum(plan.steps for plan in plans)
    optimizer = make_optimizer(model, training)
    start = 0
    if checkpoint := find_checkpoint([plan.folder / "checkpoint" for plan in plans], key, warn):
        restore(checkpoint, model, optimizer)
        start = checkpoint.step
    take_step = make_step(model, optimizer, training)
    depth, share = first_adapted(model), can_share(model)
    if not share:
        warn(f"{facts['model']}: its layers keep other caches than plain keys and values; every row is computed whole")
    finals: list[Path] = []
    first = 0
    with Interrupt() as interrupt:
        for number, plan in enumerate(plans):
            last = first + plan.steps
            log = Log(plan.folder / "metrics.jsonl")
            checkpoints = plan.folder / "checkpoint"
            patience = training.patience if plan is plans[-1] else None
            if start < last:
                log.forget_after(start if start > first else -1)
                batches = Batches(plan.train, training.batch_size, (training.seed, number), share=share)
                valid = Batches(plan.valid, training.batch_size, (0,), share=share)
                below, below_valid = (Below(model, depth, part.prefix_tokens) for part in (batches, valid))
                valid_batches = valid.in_order()
                ended = log.is_stale(patience)
                step = max(start, first)
                while not ended:
                    optimizer.learning_rate = learning_rate(step, total, training)
                    mx.random.seed(training.seed * 1_000_003 + step)
                    batch = batches.at(step - first)
                    line = _measured(take_step, batch, below, f"stage {number}, step {step + 1}", training)
                    step += 1
                    line = {"step": step, "learning_rate": float(optimizer.learning_rate)} | line
                    if step == last or step % training.validate_every == 0:
                        line["valid_loss"] = validate(model, valid_batches, below_valid)
                        if line["valid_loss"] < log.lowest():
                            save_checkpoint(checkpoints, step, key, model, optimizer, best=True)
                    log.append(line)
                    note = f"stage {number + 1}/{len(plans)}  loss {line['loss']:.3f}  {log.speed()}"
                    progress(name, step, total, note)
                    ended = step == last or log.is_stale(patience)
                    if not ended and (interrupt.asked or step % training.checkpoint_every == 0):
                        save_checkpoint(checkpoints, step, key, model, optimizer)
                    if interrupt.asked and not ended:
                        raise KeyboardInterrupt
                if patience is not None and (best := find_best(checkpoints, key, warn)):
                    restore(best, model, optimizer)
                # The adapter comes before the checkpoint, which promises that it is there.
                save_adapter(plan.folder, adapter_weights(model), config)
                save_checkpoint(checkpoints, last, key, model, optimizer)
                if interrupt.asked:
                    raise KeyboardInterrupt
            finals += [plan.folder / "adapters.safetensors", plan.folder / "adapter_config.json", log.path]
            first = last
    return finals


def validate(model: Any, batches: Sequence[Batch], below: Below) -> float:
    """Return the mean loss per completion token over a fixed set of batches."""
    model.eval()
    total, count = 0.0, 0.0
    for batch in batches:
        loss, tokens = completion_loss(model, *below.arrays(batch), first=below.first)
        total += float(loss * tokens)
        count += float(tokens)
    model.train()
    return total / count


def _measured(
    take_step: Callable[[Batch, Below], tuple[mx.array, mx.array]],
    batch: Batch,
    below: Below,
    where: str,
    training: Training,
) -> dict[str, Any]:
    """Take a step and return what it showed; raises TrainingError when the loss is not a number."""
    began = time.perf_counter()
    mx.reset_peak_memory()
    loss, norm = take_step(batch, below)
    line = {
        "loss": float(loss),
        "gradient_norm": float(norm),
        "trained_tokens": batch.trained_tokens,
        "prompt_tokens": batch.rendered_tokens - batch.trained_tokens,
        "computed_tokens": batch.computed_tokens,
        "padding": round(batch.padding, 4),
        "seconds": round(time.perf_counter() - began, 4),
        "peak_memory": mx.get_peak_memory(),
    }
    if not (math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"])):
        fix = f"lower learning_rate (now {training.learning_rate}) and run again"
        raise TrainingError(where, "the loss is not a number any more", got=line["loss"], fix=fix)
    return line
