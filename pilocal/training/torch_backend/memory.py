"""Whether a training fits a GPU, before it is begun: an estimate from the base's shape and the rows' lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pilocal.errors import TrainingError
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.backend import NF4, PACKED, UNPACKED
from pilocal.training.torch_backend.packed import AT_ONCE

KEPT = {"width": 16, "intermediate": 6}
"""Numbers that the gradient keeps, for each token and layer, in multiples of what the name says."""

LOGITS = 4
"""Times that the logits of the completion tokens live at once in float32, with their gradients."""

NF4_BYTES = 4.5 / 8
"""Of a weight in NF4, with its part of a block's scale."""

STATES = {"adamw": 2, "adam": 2, "adafactor": 0}
"""Numbers that each optimizer remembers for an adapter weight."""


def estimate(
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
    weights: str = UNPACKED,
) -> int:
    """Return the bytes that a training takes at its peak, about.

    `stages` has the training rows of each, `weights` is one of `pilocal.training.backend.WEIGHTS`.
    """
    width, inner, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or width // heads)
    queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    shapes = [(width, queries), (width, keys), (width, keys), (queries, width)]
    shapes += [(width, inner), (width, inner), (inner, width)]
    ends = int(config["vocab_size"]) * width * (1 if config.get("tie_word_embeddings", True) else 2)
    size = 4 if precision == "float32" else 2
    blocks = layers * sum(a * b for a, b in shapes)
    largest_layer = max(a * b for a, b in shapes)
    held = {
        UNPACKED: size * (blocks + ends),
        PACKED: round(_packed_bytes(config, size) * (blocks + ends)) + size * min(AT_ONCE, max(largest_layer, ends)),
        NF4: round(NF4_BYTES * blocks) + size * (ends + largest_layer),
    }[weights]
    adapted = (lora.layers or layers) * lora.rank * sum(a + b for a, b in shapes)
    adapter = 4 * adapted * (2 + STATES[training.optimizer])
    largest = 0
    for rows in stages:
        part = -(-min(training.batch_size, len(rows)) // training.accumulate)
        longest = sorted((len(row.tokens) for row in rows), reverse=True)[:part]
        answers = sorted((len(row.completion) for row in rows), reverse=True)[:part]
        layer = len(longest) * longest[0] * (KEPT["width"] * width + KEPT["intermediate"] * inner)
        kept = layer + layers * len(longest) * longest[0] * width if training.recompute else layers * layer
        largest = max(largest, size * kept + 4 * LOGITS * sum(answers) * int(config["vocab_size"]))
    return held + adapter + largest


def _packed_bytes(config: Mapping[str, Any], size: int) -> float:
    """Return the bytes of a weight as MLX packs it, with its part of a group's scale and bias, else `size`."""
    if not (how := config.get("quantization")):
        return size
    return (int(how["bits"]) + 32 / int(how["group_size"])) / 8


def choose_weights(
    free: int,
    asked: str | None,
    config: Mapping[str, Any],
    lora: Lora,
    training: Training,
    precision: str,
    stages: Sequence[Sequence[Row]],
) -> str:
    """Return how the base's weights are held: as is asked, else as floats, packed where only that fits into `free`.

    Raises TrainingError, with what to change, unless the training fits, as far as one can tell.
    """
    possible = [UNPACKED, *([PACKED] if config.get("quantization") else [])]
    for weights in [asked] if asked else possible:
        needed = estimate(config, lora, training, precision, stages, weights)
        if needed <= free:
            return weights
    what = f"the training takes about {needed / 2**30:.1f} GiB and the GPU has {free / 2**30:.1f} GiB free"
    fix = "shorten the template, lower shots, set [training] precision to bfloat16, or take a smaller base"
    if asked == UNPACKED and estimate(config, lora, training, precision, stages, possible[-1]) <= free:
        fix = "leave --weights out: the base stays packed, the same numbers in less memory"
        raise TrainingError("--device cuda", what, fix=fix)
    for recompute in (False, True) if not lora.dropout else (False,):
        for accumulate in range(1, training.batch_size + 1):
            changed = replace(training, accumulate=accumulate, recompute=recompute or training.recompute)
            if estimate(config, lora, changed, precision, stages, weights) <= free:
                settings = [f"accumulate = {accumulate}"] * (accumulate > 1) + ["recompute = true"] * recompute
                fix = f"set [training] {' and '.join(settings)}: the same gradient in less memory"
                raise TrainingError("--device cuda", what, fix=fix)
    raise TrainingError("--device cuda", what, fix=fix)


def out_of_memory(training: Training) -> TrainingError:
    """Return what to say when the GPU's memory ran out after all."""
    fix = f"raise [training] accumulate (now {training.accumulate}), set recompute = true, or lower batch_size"
    return TrainingError("--device cuda", "the GPU's memory is used up", fix=fix)
