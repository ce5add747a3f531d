"""What pilocal predicts for a Mac that trains bases in 4 bits, for a guide: `python -m tests.bench.macbook`.

The first table is about Llama-3.1-8B and templates, the second about larger bases. Nothing is loaded or measured.
"""

from __future__ import annotations

from pilocal.base.blas import load_fast_blas

load_fast_blas()

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pilocal.base.device import lent_memory
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.memory import GIB, Machine, advise, base_bytes, predict, read_sizes
from pilocal.training.mlx.probe import survey
from pilocal.training.row_order import StagePlan
from tests.bench.shapes import COMMON, SHAPES

LLAMA = {**COMMON, **SHAPES["8b"]}

QWEN3: Mapping[str, Any] = {
    **COMMON,
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 5120,
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_scaling": None,
}

BASES: Mapping[str, Mapping[str, Any]] = {
    "Llama 3.1 8B": LLAMA,
    "Qwen3 14B": {**QWEN3, "intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40},
    "Qwen3 32B": {**QWEN3, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
    "Qwen3 30B-A3B": {
        **QWEN3,
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "Llama 3.3 70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""Their dimensions, in 4 bits by groups of 64."""

MACS = (16, 24, 32, 36, 48, 64, 96, 128)
"""GB of memory."""

BASE_MACS = (16, 24, 32, 64, 128)
"""Those of the table of bases."""

TEMPLATES = (1000, 4000)
BASE_TEMPLATE = 1500
SHOTS, QUERY, ANSWER = 5 * 70, 40, 30
"""Tokens of a row behind the template."""

FITTING, SETTING = re.compile(r"set (.+): ([\d.]+ GiB)"), re.compile(r"\w+ = \w+")
"""What a piece of advice that makes a training fit looks like."""

ROWS = 1000
"""Training rows, of which some hidden states are kept where only the last layers are adapted."""


def lent(gigabytes: int) -> float:
    """Return how many GiB Metal lends a training, at least."""
    return lent_memory(gigabytes << 30) / GIB


def said(gigabytes: int, template: int, config: Mapping[str, Any] = LLAMA) -> str:
    """Return which settings make the first stage fit, and its peak."""
    machine = Machine(memory=lent_memory(gigabytes << 30), base=base_bytes(config, packed=True))
    draw, training, sizes = Random(0), Training(), read_sizes(config, Lora())

    def some(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(config["vocab_size"]) for _ in range(count))

    shared, asked = some(template), SHOTS + QUERY
    rows = [Row(shared + some(asked + ANSWER), template + asked) for _ in range(training.batch_size)]
    work = survey(sizes, StagePlan(0, rows, (), 1, Path()), training)
    works = [replace(work, own=ROWS * (asked + ANSWER))]
    advice = advise(machine, sizes, works, training)
    if advice is None:
        return f"as it is: {predict(machine, sizes, works, [1], training)[0].peak / GIB:.1f} GiB"
    if not (found := FITTING.match(advice)):
        return "does not fit"
    settings, peak = found.groups()
    return f"{', '.join(f'`{setting}`' for setting in SETTING.findall(settings))}: {peak}"


def memory_table() -> str:
    """Return the table in Markdown."""
    heads = [f"template of {template:,} tokens" for template in TEMPLATES]
    lines = [f"| Mac, GB | lent, GiB | {' | '.join(heads)} |", "| --: | --: | --- | --- |"]
    for mac in MACS:
        cells = [str(mac), f"{lent(mac):.1f}", *(said(mac, template) for template in TEMPLATES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bases_table() -> str:
    """Return the table of bases in Markdown."""
    lines = [f"| Mac, GB | {' | '.join(BASES)} |", f"| --: |{' --- |' * len(BASES)}"]
    weights = [f"{base_bytes(config, packed=True) / GIB:.1f} GiB" for config in BASES.values()]
    lines.append(f"| weights | {' | '.join(weights)} |")
    for mac in BASE_MACS:
        cells = [said(mac, BASE_TEMPLATE, config) for config in BASES.values()]
        lines.append(f"| {mac} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(memory_table(), bases_table(), sep="\n", end="")
