"""The teacher's pass over rows that share a template, beside reading the template anew for every row."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from pilocal.task import Training
from pilocal.training.mlx.teacher import MlxTeacher
from tests.bench.rows import Lengths, make_rows
from tests.bench.train_step import Size, make_model, ratio

ROWS = 32


def teacher(repeats: int) -> dict[str, Any]:
    """Return how many times as fast the shared reading is, and how far both lie apart."""
    size = Size(layers=4, width=256)
    rows = make_rows(Lengths(template=1000, shots=0), ROWS, size.vocabulary)
    training = Training(objective="distill", batch_size=8)
    model = make_model(size)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    said = {}
    for turn in range(repeats + 1):
        for share, taken in seconds.items():
            began = time.perf_counter()
            said[share] = MlxTeacher(model, training, share=share).says(rows)
            if turn:  # the first of each warms up
                taken.append(time.perf_counter() - began)
    pairs = list(zip(said[True], said[False], strict=True))
    return {
        "title": "teacher's pass, template of 1,000 tokens",
        "rows": ROWS,
        "speed": ratio(seconds[True], seconds[False]),
        "seconds": [round(median(values), 3) for values in seconds.values()],
        "same_top": float(np.mean([np.array_equal(one.ids_CK[:, 0], other.ids_CK[:, 0]) for one, other in pairs])),
        "largest_difference": max(float(np.abs(a.log_probs_CK - b.log_probs_CK).max()) for a, b in pairs),
    }
