"""What pilocal predicts for a Mac that trains Llama-3.1-8B in 4 bits, for a guide: `python -m tests.bench.macbook`."""

from __future__ import annotations

from pilocal.base.blas import load_fast_blas

load_fast_blas()

import math
from pathlib import Path
from random import Random

from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.memory import Machine, advise, predict, read_sizes
from pilocal.training.mlx.probe import survey
from pilocal.training.row_order import StagePlan
from tests.bench.shapes import COMMON, SHAPES, entries

CONFIG = {**COMMON, **SHAPES["8b"]}
GIB = 1 << 30

MACS = (16, 24, 32, 36, 48, 64, 96, 128)
"""GB of memory."""

LARGE = 36
"""GB from which on Metal lends three quarters of them; below, two thirds."""

TEMPLATES = (1000, 4000)
SHOTS, QUERY, ANSWER = 5 * 70, 40, 30
"""Tokens of a row behind the template."""


def lent(gigabytes: int) -> float:
    """Return how many GiB Metal lends a training, at least, by llama.cpp's logs from Macs."""
    return gigabytes * (3 / 4 if gigabytes >= LARGE else 2 / 3)


def base_size() -> int:
    """Return the bytes of the base's weights in 4 bits."""
    return sum(math.prod(shape) * (4 if kind == "U32" else 2) for _, (kind, shape) in entries(CONFIG))


def said(gigabytes: int, template: int) -> str:
    """Return which settings make the first stage fit, and its peak."""
    machine = Machine(memory=int(lent(gigabytes) * GIB), base=base_size())
    draw, training, sizes = Random(0), Training(), read_sizes(CONFIG, Lora())

    def some(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(CONFIG["vocab_size"]) for _ in range(count))

    shared, asked = some(template), SHOTS + QUERY
    rows = [Row(shared + some(asked + ANSWER), template + asked) for _ in range(training.batch_size)]
    works = [survey(sizes, StagePlan(0, rows, (), 1, Path()), training)]
    advice = advise(machine, sizes, works, training)
    if advice is None:
        return f"as it is: {predict(machine, sizes, works, [1], training)[0].peak / GIB:.1f} GiB"
    settings, _, peak = advice.removeprefix("set [training] ").removesuffix(", the same gradient").partition(": ")
    return f"`{settings.replace(' and ', '`, `')}`: {peak}" if peak else "does not fit"


def memory_table() -> str:
    """Return the table in Markdown."""
    heads = [f"template of {template:,} tokens" for template in TEMPLATES]
    lines = [f"| Mac, GB | lent, GiB | {' | '.join(heads)} |", "| --: | --: | --- | --- |"]
    for mac in MACS:
        cells = [str(mac), f"{lent(mac):.1f}", *(said(mac, template) for template in TEMPLATES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(memory_table(), end="")
