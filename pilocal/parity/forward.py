"""The forward pass side by side: the logits that predict the completions of a few rows, from every program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pilocal.llamacpp.engine import Engine, log_softmax
from pilocal.parity.replay import Floats, Replayer
from pilocal.prompt.tokens import Row
from pilocal.run_folder.shipped import Shipped


def predicted(backend: Replayer, rows: Sequence[Row]) -> list[Floats]:
    """Return each row's logits (C, vocabulary) that predict its C completion tokens."""
    return [row.pick(np.array(backend.logits(row)[row.offset - 1 : -1], dtype=np.float32)) for row in rows]


def predicted_by_llamacpp(shipped: Shipped, rows: Sequence[Row]) -> list[Floats]:
    """Return the same from a run's exported files; raises ModelError if llama.cpp refuses one."""
    longest = max(len(row.tokens) for row in rows)
    with Engine(shipped.served_path, longest, shipped.adapter_path) as engine:
        return [row.pick(engine.logits(row.tokens[:-1], row.offset - 1)) for row in rows]


def compare_logits(reference: Sequence[Floats], other: Sequence[Floats]) -> dict[str, float]:
    """Return the largest difference of two logits, the same relative to the largest logit, and the mean KL divergence.

    KL(reference, other) is in nats per completion token.

    >>> compare_logits([np.zeros((1, 2), np.float32)], [np.zeros((1, 2), np.float32)])
    {'max_absolute': 0.0, 'relative': 0.0, 'kl': 0.0, 'tokens': 1}
    """
    absolute = max(float(np.abs(a - b).max()) for a, b in zip(reference, other, strict=True))
    largest = max(float(np.abs(a).max()) for a in reference)
    kl, tokens = 0.0, 0
    for a, b in zip(reference, other, strict=True):
        wide, narrow = (log_softmax(logits.astype(np.float64)) for logits in (a, b))
        kl += float((np.exp(wide) * (wide - narrow)).sum())
        tokens += len(a)
    relative = absolute / largest if largest else absolute
    return {"max_absolute": absolute, "relative": relative, "kl": kl / tokens, "tokens": tokens}


def forward_figures(rows: Mapping[int, Sequence[Row]], logits: Mapping[str, Sequence[Floats]]) -> list[dict[str, Any]]:
    """Return one entry for each stage and program: how far its logits lie from MLX's on the stage's rows.

    `logits` are each program's on all rows, stage after stage, those of "mlx" among them.
    """
    entries, first = [], 0
    for stage, some in rows.items():
        part = slice(first, first + len(some))
        first += len(some)
        for name, found in logits.items():
            if name != "mlx":
                figures = compare_logits(logits["mlx"][part], found[part])
                entries.append({"stage": stage, "program": name, "rows": len(some), **figures})
    return entries
