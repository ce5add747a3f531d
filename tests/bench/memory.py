"""The predicted peak of memory beside the measured one, on random configurations that the formula was not fitted to."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from pilocal.base.architectures import ARCHITECTURES
from pilocal.base.blas import load_fast_blas

load_fast_blas()

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING

from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.memory import Machine, base_bytes, predict, read_sizes
from pilocal.training.mlx.batches import make_batch
from pilocal.training.mlx.probe import survey, take_probe
from pilocal.training.row_order import StagePlan

WIDTHS = (128, 256, 384, 512)
"""A CPU takes minutes to multiply wider matrices than the first two in bfloat16."""

STEPS = 3
"""The highest of so many steps counts: MLX does not free everything at the same moment each time."""


def memory(count: int = 24, seed: int = 1000, kind: str = "llama", precision: str | None = None) -> dict[str, Any]:
    """Return the relative errors of the prediction without a probe; every other configuration recomputes.

    `kind` is the `model_type`; the formula was fitted to Llamas, in float32. With a `precision` the step is compiled,
    as it is on a Mac, where a base in 4 bits is computed in bfloat16.
    """
    rng, errors, lines = Random(seed), list[float](), list[list[int]]()
    for number in range(count):
        width, head_dim = rng.choice(WIDTHS[:2] if precision else WIDTHS), rng.choice((32, 64))
        heads = width // head_dim
        config: dict[str, Any] = {
            "model_type": kind,
            "hidden_size": width,
            "num_hidden_layers": rng.choice((2, 4, 6, 8)),
            "intermediate_size": int(width * rng.choice((1.5, 2.5, 3.5))) // 32 * 32,
            "num_attention_heads": heads,
            "head_dim": head_dim,
            "num_key_value_heads": rng.choice([n for n in (1, 2, 4, 8) if heads % n == 0]),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "vocab_size": rng.choice((2048, 8192, 32000)),
            "tie_word_embeddings": False,
        }
        if ARCHITECTURES[kind].experts:
            config |= {"num_experts": rng.choice((8, 32)), "num_experts_per_tok": rng.choice((2, 4, 8))}
            config |= {"moe_intermediate_size": width // 64 * rng.choice((1, 2, 4)) * 16, "norm_topk_prob": True}
            config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
        lora = Lora(rank=rng.choice((4, 16, 32)))
        training = Training(batch_size=rng.choice((1, 2, 4, 8)), recompute=number % 2 == 1)
        training = replace(training, precision=precision, compile=True if precision else None)
        template, own, answer = rng.choice((0, 100, 300, 700)), rng.choice((64, 128, 256)), rng.choice((8, 16, 40))
        some = partial(random_tokens, rng, config["vocab_size"])
        shared = some(template)
        rows = [Row(shared + some(own), template + own - answer) for _ in range(training.batch_size)]
        sizes = read_sizes(config, lora)
        work = survey(sizes, StagePlan(0, rows, (), 1, Path()), training)
        base = base_bytes(config, packed=False, precision=precision)
        need = predict(Machine(memory=1 << 34, base=base), sizes, [work], [1], training)[0]
        peak = max(step_peak(config, rows, template, lora, training, base) for _ in range(STEPS))
        measured = peak + base + 3 * 4 * sizes.adapter
        errors.append(need.peak / measured - 1)
        lines.append([round(need.peak / 2**20), round(measured / 2**20)])
    largest = max(errors, key=abs)
    within = sum(abs(error) <= 0.15 for error in errors)
    return {
        "title": f"predicted peak memory, {count} configurations of {kind} in {precision or 'float32'}",
        "within_15_percent": within,
        "median_error": round(median(map(abs, errors)), 3),
        "largest_error": round(largest, 3),
        "errors_from_to": [round(min(errors), 3), round(max(errors), 3)],
        "predicted_and_measured_mib": lines,
    }


def random_tokens(rng: Random, vocabulary: int, length: int) -> tuple[int, ...]:
    """Return any tokens but the first three."""
    return tuple(rng.choices(range(3, vocabulary), k=length))


def step_peak(config: dict[str, Any], rows: list[Row], template: int, lora: Lora, training: Training, base: int) -> int:
    """Return the bytes that one step of a new model took, without its weights."""
    mx.random.seed(0)
    module = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(config['model_type'], config['model_type'])}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(getattr(mx, training.precision or "float32"))
    model.freeze()
    mx.eval(model.parameters())
    assert base == sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())
    probe = take_probe(model, make_batch(rows, template), lora, training)
    del model
    gc.collect()
    mx.clear_cache()
    return probe.bytes
