"""Whether a training fits the memory, before it is begun: an estimate from the base's shape and the rows' lengths."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pilocal.errors import TrainingError
from pilocal.prompt.tokens import Row
from pilocal.task import OPTIMIZERS, Lora, Training
from pilocal.training.backend import NF4, PACKED, UNPACKED
from pilocal.training.memory import Sizes, read_sizes, smaller
from pilocal.training.torch_backend.packed import AT_ONCE

KEPT = {"width": 16, "intermediate": 6}
"""Numbers that the gradient keeps, for each token and layer, in multiples of what the name says."""

LOGITS = 4
"""Times that the logits of the completion tokens live at once in float32, with their gradients."""

GATHERED = 2
"""Times that a sharded layer is in memory while it computes: as it was gathered, and as it is computed with."""

NF4_BYTES = 4.5 / 8
"""Of a weight in NF4, with its part of a block's scale."""

SHORTEN = (
    "shorten the template, lower shots, set [training] precision to bfloat16, shard the base over more processes "
    "(accelerate launch --use_fsdp), or take a smaller base"
)


def estimate(
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
    weights: str = UNPACKED,
    shards: int = 1,
) -> int:
    """Return the bytes that a training takes at its peak, about, in one of `shards` processes that share the base.

    `stages` has the training rows of each, `weights` is one of `pilocal.training.backend.WEIGHTS`. Raises InputError
    when `lora` does not fit the base.
    """
    sizes = read_sizes(config, lora)
    held = _held_bytes(config, sizes, precision, weights, shards)
    size = _bytes_of(precision)
    adapter = 4 * sizes.adapter * (2 + OPTIMIZERS[training.optimizer].remembered)
    largest = 0
    for rows in stages:
        part = -(-min(training.batch_size, len(rows)) // (shards * training.accumulate))
        longest = sorted((len(row.tokens) for row in rows), reverse=True)[:part]
        answers = sorted((len(row.completion) for row in rows), reverse=True)[:part]
        tokens = len(longest) * longest[0]
        layer = tokens * (KEPT["width"] * sizes.width + KEPT["intermediate"] * sizes.intermediate)
        kept = layer + sizes.layers * tokens * sizes.width if training.recompute else sizes.layers * layer
        largest = max(largest, size * kept + 4 * LOGITS * sum(answers) * sizes.vocabulary)
    return held + adapter + largest


def _held_bytes(config: Mapping[str, Any], sizes: Sizes, precision: str, weights: str, shards: int) -> int:
    """Return the bytes of a base's weights in one of `shards` processes, with what is unpacked or gathered of them."""
    end = sizes.vocabulary * sizes.width
    ends = end * (1 if config.get("tie_word_embeddings", True) and shards == 1 else 2) + sizes.tables
    size = _bytes_of(precision)
    blocks, experts = round(sizes.layers * sizes.weights), sizes.layers * sizes.experts
    largest_layer = max(a * b for block in sizes.blocks for a, b in block.values())
    packed = _packed_bytes(config, size)
    held = {
        UNPACKED: size * (blocks + ends),
        PACKED: round(packed * (blocks + ends)),
        NF4: round(NF4_BYTES * blocks) + size * (ends + largest_layer),
    }[weights]
    if shards > 1:  # the largest layer is gathered, and laid out anew
        held = held // shards + round(GATHERED * max(largest_layer, end) * (packed if weights == PACKED else size))
    held += size * experts  # floats and whole in any case
    return held + (size * min(AT_ONCE, max(largest_layer, ends)) if weights == PACKED else 0)


def _bytes_of(precision: str) -> int:
    """Return the bytes of a number that the base computes with."""
    return 4 if precision == "float32" else 2


def _packed_bytes(config: Mapping[str, Any], size: int) -> float:
    """Return the bytes of a weight as MLX packs it, with its part of a group's scale and bias, else `size`."""
    if not (how := config.get("quantization")):
        return size
    return (int(how["bits"]) + 32 / int(how["group_size"])) / 8


def fitting_weights(
    free: int,
    asked: str | None,
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
    shards: int = 1,
) -> tuple[str, str | None]:
    """Return how the base's weights are held, and what to change where that does not fit into `free` bytes, or None.

    They are held as is asked, else as floats, and packed where only that fits.
    """
    possible = [asked] if asked else [UNPACKED, *([PACKED] if config.get("quantization") else [])]

    def fits(changed: Training, weights: str) -> bool:
        return estimate(config, lora, changed, precision, stages, weights, shards) <= free

    for weights in possible:
        if fits(training, weights):
            return weights, None
    if asked == UNPACKED and config.get("quantization") and fits(training, PACKED):
        return weights, "leave --weights out: the base stays packed, the same numbers in less memory"
    for settings, changed in smaller(training, may_recompute=not lora.dropout):
        if fits(changed, weights):
            return weights, f"set [training] {settings}: the same gradient in less memory"
    return weights, SHORTEN


def choose_weights(
    free: int,
    asked: str | None,
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
    shards: int = 1,
) -> str:
    """Return how the base's weights are held: as is asked, else as floats, packed where only that fits into `free`.

    Raises TrainingError, with what to change, unless the training fits, as far as one can tell.
    """
    weights, fix = fitting_weights(free, asked, config, lora, training, precision, stages, shards)
    if fix:
        needed = estimate(config, lora, training, precision, stages, weights, shards)
        what = f"the training takes about {needed / 2**30:.1f} GiB and the GPU has {free / 2**30:.1f} GiB free"
        raise TrainingError("--device cuda", what, fix=fix)
    return weights


def plan_stages(
    free: int,
    asked: str | None,
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
    shards: int = 1,
) -> tuple[list[int], str | None]:
    """Return each stage's bytes at the peak, and what to change where that is more than `free`, or None.

    The arguments are those of `choose_weights`.
    """
    weights, fix = fitting_weights(free, asked, config, lora, training, precision, stages, shards)
    return [estimate(config, lora, training, precision, [rows], weights, shards) for rows in stages], fix


@contextmanager
def told_of_memory(training: Training) -> Iterator[None]:
    """Raise TrainingError, with what to change, when the GPU's memory runs out in the block after all."""
    try:
        yield
    except torch.OutOfMemoryError:
        fix = f"raise [training] accumulate (now {training.accumulate}), set recompute = true, or lower batch_size"
        raise TrainingError("--device cuda", "the GPU's memory is used up", fix=fix) from None


def peak_memory(device: torch.device) -> int:
    """Return the bytes at the peak: of the step on CUDA, so far in the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
