"""pilocal's training step beside mlx-lm's own, on the same rows, base and LoRA, in turn in one process.

mlx-lm's step is its trainer's: its batches of whole rows, padded, its `default_loss`, compiled, with AdamW. Speed is
counted in tokens of the rendered rows, each whole, whatever was really computed. Every figure is a ratio, with the
median and the range over the pairs of steps; absolute times belong to the machine. A shape of which mlx-lm's step would
not fit the memory is measured for pilocal alone.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from pilocal.base.blas import load_fast_blas

load_fast_blas()  # before MLX is imported

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.utils import value_and_grad
from mlx_lm.models import gemma3_text, llama
from mlx_lm.tuner.trainer import default_loss, iterate_batches

from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.mlx import forward
from pilocal.training.mlx.adapter import add_lora
from pilocal.training.mlx.batches import Batches
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizers import make_optimizer
from pilocal.training.mlx.step import BatchTrainer
from pilocal.training.mlx.team import MlxTeam
from tests.bench.rows import Lengths, make_rows

Step = Callable[[], None]


class Size(NamedTuple):
    """A Llama with random float32 weights, or with a window a Gemma 3."""

    layers: int = 8
    width: int = 512
    vocabulary: int = 32000
    window: int | None = None


def make_model(size: Size, layers: int | None = None) -> Any:
    """Return the base with a LoRA of rank 16 on every linear layer of the last `layers`; the same weights always."""
    mx.random.seed(0)
    kind = gemma3_text if size.window else llama
    arguments = kind.ModelArgs(
        model_type="gemma3_text" if size.window else "llama",
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=size.width * 7 // 2,
        num_attention_heads=size.width // 64,
        num_key_value_heads=max(1, size.width // 256),
        rms_norm_eps=1e-5,
        vocab_size=size.vocabulary,
        rope_theta=500000.0,
        **({"head_dim": 64, "sliding_window": size.window} if size.window else {"tie_word_embeddings": False}),
    )
    model = kind.Model(arguments)
    model.freeze()
    add_lora(model, Lora(layers=layers), seed=0)
    return model


def mlx_lm_step(size: Size, rows: Sequence[Row], batch_size: int, layers: int | None = None) -> Step:
    """Return a function that takes one step as mlx_lm.tuner.trainer.train does."""
    model = make_model(size, layers)
    optimizer = optim.AdamW(learning_rate=1e-4)
    optimizer.init(model.trainable_parameters())
    loss_value_and_grad = value_and_grad(model, default_loss)
    state = [model.state, optimizer.state, mx.random.state]
    model.train()

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: mx.array, lengths: mx.array) -> mx.array:
        loss: mx.array
        (loss, _), gradients = loss_value_and_grad(model, batch, lengths)
        optimizer.update(model, gradients)
        return loss

    batches = iterate_batches([(list(row.tokens), row.offset) for row in rows], batch_size, 1 << 20, loop=True, seed=0)
    return lambda: mx.eval(state, step(*next(batches)))


def pilocal_step(
    size: Size,
    rows: Sequence[Row],
    batch_size: int,
    *,
    shared: bool = True,
    recompute: bool = False,
    compiled: bool | None = None,
    layers: int | None = None,
) -> Step:
    """Return a function that takes one of pilocal's steps; `shared=False` computes every row whole.

    `layers` is how many of the last ones are adapted.
    """
    training = Training(learning_rate=1e-4, recompute=recompute, compile=compiled)
    model = make_model(size, layers)
    trainer = BatchTrainer(model, make_optimizer(model, training), training, MlxTeam())
    batches = Batches(rows, batch_size, (0,), share=shared)
    below = Below(model, trainer.first, batches.prefix_tokens)
    numbers = iter(range(1 << 30))

    def step() -> None:
        number = next(numbers)
        mx.eval(trainer.step(number, training.learning_rate, batches.at(number), below))

    return step


@contextmanager
def whole_last_layer() -> Any:
    """Compute the last layer at every token."""
    former = vars(forward)["_completions"]

    def whole(layer: Any, window: int | None, hidden_BTD: mx.array, past: Any, at_BC: mx.array) -> mx.array:
        out_BTD, _ = forward.run_layer(layer, hidden_BTD, past, window)
        return mx.take_along_axis(out_BTD, at_BC[..., None], axis=1)

    vars(forward)["_completions"] = whole
    try:
        yield
    finally:
        vars(forward)["_completions"] = former


class Measured(NamedTuple):
    """What some steps took."""

    seconds: list[float]
    peak: int
    """Bytes."""


def measure(steps: dict[str, Step], repeats: int) -> dict[str, Measured]:
    """Take each step once to warm up, then in turn, `repeats` times each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = dict.fromkeys(steps, 0)
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()  # the other models' weights, too
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
            peaks[name] = max(peaks[name], mx.get_peak_memory() - before)
    return {name: Measured(seconds[name], peaks[name]) for name in steps}


def fits(size: Size, lengths: Lengths, batch: int) -> bool:
    """Tell whether mlx-lm's step fits this machine, from the two arrays that outgrow all others."""
    rows = batch * lengths.row
    logits = 4 * 4 * rows * size.vocabulary
    scores = 2 * 4 * size.layers * (size.width // 64) * rows * lengths.row
    activations = 4 * size.layers * rows * size.width * 30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return logits + scores + activations < 0.8 * memory


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of theirs / ours, pair by pair."""
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {"median": round(median(pairs), 2), "lowest": round(min(pairs), 2), "highest": round(max(pairs), 2)}


def compare(title: str, size: Size, lengths: Lengths, batch: int, repeats: int) -> dict[str, Any]:
    """Measure one shape and print its line."""
    rows = make_rows(lengths, 2 * batch, size.vocabulary)
    steps = {"pilocal": pilocal_step(size, rows, batch)}
    if fits(size, lengths, batch):
        steps["mlx_lm"] = mlx_lm_step(size, rows, batch)
    got = measure(steps, repeats)
    ours = got["pilocal"]
    result: dict[str, Any] = {
        "title": title,
        "tokens_per_second": round(batch * lengths.row / median(ours.seconds)),
        "peak_gib": round(ours.peak / 2**30, 2),
        "seconds": [round(value, 3) for value in ours.seconds],
    }
    if "mlx_lm" in got:
        theirs = got["mlx_lm"]
        result |= {
            "speed": ratio(ours.seconds, theirs.seconds),
            "memory": round(theirs.peak / ours.peak, 2),
            "mlx_lm_peak_gib": round(theirs.peak / 2**30, 2),
            "mlx_lm_seconds": [round(value, 3) for value in theirs.seconds],
        }
    say(result)
    del steps
    gc.collect()
    mx.clear_cache()
    return result


def stage_1(batch: int, repeats: int) -> dict[str, Any]:
    """The whole template and five shots."""
    return compare(f"stage 1, batch {batch}", Size(), Lengths(), batch, repeats)


def query_only(repeats: int) -> dict[str, Any]:
    """Nothing is shared."""
    return compare("query only, batch 8", Size(), Lengths(template=0, shots=0), 8, repeats)


def schedule(repeats: int) -> dict[str, Any]:
    """The linear schedule in four stages, the same rows in each; what a step of each takes, added up."""
    stages = [Lengths(round(1000 * (3 - i) / 3), round(5 * (3 - i) / 3)) for i in range(4)]
    parts = [compare(f"linear schedule, stage {i}", Size(), part, 8, repeats) for i, part in enumerate(stages)]
    ours, theirs = (
        [sum(values) for values in zip(*(part[name] for part in parts), strict=True)]
        for name in ("seconds", "mlx_lm_seconds")
    )
    result = {"title": "whole linear schedule, batch 8", "speed": ratio(ours, theirs)}
    say(result)
    return result


def savings(repeats: int) -> dict[str, Any]:
    """Stage 1 at batch 4 with one saving after the other."""
    size, lengths, batch = Size(), Lengths(), 4
    rows = make_rows(lengths, 2 * batch, size.vocabulary)
    with whole_last_layer():
        steps = {"head": pilocal_step(size, rows, batch, shared=False)}
        got = measure({"mlx_lm": mlx_lm_step(size, rows, batch), **steps}, repeats)
        got |= measure({"head, prefix": pilocal_step(size, rows, batch)}, repeats)
    got |= measure({"head, prefix, last layer": pilocal_step(size, rows, batch)}, repeats)
    result = {
        "title": "stage 1, batch 4, one saving after the other",
        "speed": {name: round(median(got["mlx_lm"].seconds) / median(part.seconds), 2) for name, part in got.items()},
        "memory": {name: round(got["mlx_lm"].peak / part.peak, 2) for name, part in got.items()},
    }
    say(result)
    return result


def recomputation(repeats: int) -> dict[str, Any]:
    """What `recompute` saves in memory and costs in time, with many layers."""
    size, lengths, batch = Size(layers=16, width=256, vocabulary=2048), Lengths(template=300, shots=2), 4
    rows = make_rows(lengths, 2 * batch, size.vocabulary)
    steps = {name: pilocal_step(size, rows, batch, recompute=name == "recomputed") for name in ("kept", "recomputed")}
    got = measure(steps, repeats)
    result = {
        "title": "recompute, 16 layers, width 256, batch 4",
        "peak_mib": {name: round(part.peak / 2**20) for name, part in got.items()},
        "time": ratio(got["kept"].seconds, got["recomputed"].seconds),
    }
    say(result)
    return result


def groups(repeats: int) -> dict[str, Any]:
    """Stage 1 where the rows have the shots of four families, as when there are few different answers."""
    size, lengths, batch = Size(), Lengths(), 8
    rows = make_rows(lengths, 2 * batch, size.vocabulary, families=4)
    got = measure({"pilocal": pilocal_step(size, rows, batch), "mlx_lm": mlx_lm_step(size, rows, batch)}, repeats)
    alone = make_rows(lengths, 2 * batch, size.vocabulary)
    got |= measure({"shots of its own": pilocal_step(size, alone, batch)}, repeats)
    result = {
        "title": "stage 1, batch 8, shots of four families",
        "speed": ratio(got["pilocal"].seconds, got["mlx_lm"].seconds),
        "memory": round(got["mlx_lm"].peak / got["pilocal"].peak, 2),
        "against_rows_with_shots_of_their_own": ratio(got["pilocal"].seconds, got["shots of its own"].seconds),
    }
    say(result)
    return result


def last_layers(repeats: int) -> dict[str, Any]:
    """Stage 1 with an adapter on the last two of eight layers, once every row has been met."""
    size, lengths, batch = Size(), Lengths(), 4
    rows = make_rows(lengths, batch, size.vocabulary)
    steps = {"pilocal": pilocal_step(size, rows, batch, layers=2), "mlx_lm": mlx_lm_step(size, rows, batch, layers=2)}
    got = measure(steps, repeats)
    result = {
        "title": "stage 1, batch 4, adapter on two of eight layers",
        "speed": ratio(got["pilocal"].seconds, got["mlx_lm"].seconds),
        "memory": round(got["mlx_lm"].peak / got["pilocal"].peak, 2),
    }
    say(result)
    return result


def windows(repeats: int) -> dict[str, Any]:
    """Stage 1 of a Gemma 3 whose template is longer and shorter than its windows, beside every row whole."""
    parts = []
    for window in (512, 2048):
        size, lengths, batch = Size(window=window), Lengths(), 4
        rows = make_rows(lengths, 2 * batch, size.vocabulary)
        steps = {name: pilocal_step(size, rows, batch, shared=name == "shared") for name in ("shared", "whole")}
        got = measure(steps, repeats)
        part = {"window": window, "speed": ratio(got["shared"].seconds, got["whole"].seconds)}
        parts.append(part | {"memory": round(got["whole"].peak / got["shared"].peak, 2)})
    result = {"title": "stage 1, batch 4, Gemma 3: prefix shared beside every row whole", "parts": parts}
    say(result)
    return result


def compilation(repeats: int) -> dict[str, Any]:
    """What mx.compile does for pilocal's own step."""
    result: dict[str, Any] = {"title": "compiled, batch 8"}
    for name, lengths in {"stage 1": Lengths(), "query only": Lengths(template=0, shots=0)}.items():
        rows = make_rows(lengths, 16, Size().vocabulary)
        steps = {name: pilocal_step(Size(), rows, 8, compiled=name == "compiled") for name in ("plain", "compiled")}
        got = measure(steps, repeats)
        result[name] = {
            "speed": ratio(got["compiled"].seconds, got["plain"].seconds),
            "peak": round(got["compiled"].peak / got["plain"].peak, 2),
        }
    say(result)
    return result


def growth(repeats: int) -> dict[str, Any]:
    """How a step's time grows with the template; two layers, so that mlx-lm's fits further."""
    size = Size(layers=2, width=256, vocabulary=8000)
    lengths = [Lengths(template=template) for template in (200, 400, 800, 1600, 3200)]
    parts = [compare(f"template {part.template}, batch 8", size, part, 8, repeats) for part in lengths]
    return {"title": "growth", "template": [part.template for part in lengths], "parts": parts}


def say(result: dict[str, Any]) -> None:
    """Print one result as a line."""
    print(json.dumps(result), flush=True)
