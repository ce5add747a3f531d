"""pilocal's training step beside mlx-lm's own, on the same rows, model and LoRA, in turn in one process.

`just bench` prints the ratios: how many rendered tokens a second, and how much memory at the peak. mlx-lm's step is
its trainer's: padded batches of whole rows, its `default_loss`, compiled with AdamW.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from pilocal.blas import load_fast_blas

load_fast_blas()

import mlx.core as mx
import mlx.optimizers as optim
from mlx import nn
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner.trainer import default_loss, iterate_batches

from pilocal.task import Lora, Training
from pilocal.tokens import Row
from pilocal.train.adapter import add_lora
from pilocal.train.batches import Batches
from pilocal.train.optimizer import make_optimizer, make_step


class Shape(NamedTuple):
    """The lengths of a row's parts, in tokens."""

    template: int
    shots: int
    shot: int = 40
    query: int = 40
    answer: int = 30


def make_model(layers: int, width: int, vocabulary: int) -> Model:
    """A Llama with random float32 weights, grouped heads and a LoRA of rank 16 on every linear layer."""
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=width * 7 // 2,
            num_attention_heads=width // 64,
            num_key_value_heads=max(1, width // 256),
            rms_norm_eps=1e-5,
            vocab_size=vocabulary,
            rope_theta=500000.0,
            tie_word_embeddings=False,
        )
    )
    model.freeze()
    add_lora(model, Lora(rank=16), seed=0)
    return model


def make_rows(shape: Shape, count: int, vocabulary: int) -> list[Row]:
    """Rows with the same template and with shots, query and answer of their own, all of one length."""
    rng = np.random.default_rng(0)

    def some(length: int) -> list[int]:
        tokens: list[int] = rng.integers(3, vocabulary, length).tolist()
        return tokens

    template = some(shape.template)
    own = shape.shots * shape.shot + shape.query
    return [Row((*template, *some(own + shape.answer)), shape.template + own) for _ in range(count)]


def mlx_lm_step(model: Model, rows: list[Row], batch_size: int) -> Callable[[], float]:
    """Return a function that takes one step as mlx_lm.tuner.trainer.train does."""
    optimizer = optim.AdamW(learning_rate=1e-4)
    optimizer.init(model.trainable_parameters())
    loss_value_and_grad = nn.value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]
    model.train()

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array, lengths: mx.array) -> mx.array:
        (loss, _), gradients = loss_value_and_grad(model, batch, lengths)
        optimizer.update(model, gradients)
        return loss

    dataset = [(list(row.tokens), row.offset) for row in rows]
    batches = iterate_batches(dataset, batch_size, 1 << 20, loop=True, seed=0)

    def take() -> float:
        loss = step(*next(batches))
        mx.eval(state, loss)
        return float(loss)

    return take


def pilocal_step(model: Model, rows: list[Row], batch_size: int) -> Callable[[], float]:
    """Return a function that takes one of pilocal's steps."""
    training = Training()
    optimizer = make_optimizer(model, training)
    optimizer.learning_rate = training.learning_rate
    step = make_step(model, optimizer, training)
    batches = Batches(rows, batch_size, (0,))
    number = 0

    def take() -> float:
        nonlocal number
        loss, _ = step(batches.at(number))
        number += 1
        return float(loss)

    return take


class Measured(NamedTuple):
    """What one way of training took."""

    seconds: list[float]
    peak: int
    """Bytes."""


def measure(takes: dict[str, Callable[[], float]], repeats: int) -> dict[str, Measured]:
    """Warm each step up once, then time them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in takes}
    peaks = dict.fromkeys(takes, 0)
    for take in takes.values():
        take()
    for _ in range(repeats):
        for name, take in takes.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            began = time.perf_counter()
            take()
            seconds[name].append(time.perf_counter() - began)
            peaks[name] = max(peaks[name], mx.get_peak_memory())
    return {name: Measured(seconds[name], peaks[name]) for name in takes}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--template", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="store_true")
    a = parser.parse_args()
    rows = make_rows(Shape(a.template, a.shots), 4 * a.batch, a.vocabulary)
    takes = {"pilocal": pilocal_step(make_model(a.layers, a.width, a.vocabulary), rows, a.batch)}
    if not a.only:
        takes["mlx_lm"] = mlx_lm_step(make_model(a.layers, a.width, a.vocabulary), rows, a.batch)
    got = measure(takes, a.repeats)
    for name, m in got.items():
        print(name, [round(s, 2) for s in m.seconds], round(m.peak / 2**20), "MiB")
    if not a.only:
        print(
            "ratio",
            statistics.median(x / y for x, y in zip(got["mlx_lm"].seconds, got["pilocal"].seconds, strict=True)),
            got["mlx_lm"].peak / got["pilocal"].peak,
        )


if __name__ == "__main__":
    main()
