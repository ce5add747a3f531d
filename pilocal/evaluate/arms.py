"""The arms: the same test queries answered in every way that is worth comparing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pilocal.base.load import load_base
from pilocal.evaluate.generate import generate
from pilocal.evaluate.scoring.bootstrap import interval
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.evaluate.titles import TITLES
from pilocal.llamacpp.engine import Engine, Timed
from pilocal.progress import Progress, silent
from pilocal.task import Example, Generation


@dataclass(frozen=True, slots=True)
class TestSet:
    """The test set as prompts, in the same order throughout."""

    full: Sequence[Sequence[int]]
    """Tokens of template, shots and query."""
    bare: Sequence[Sequence[int]]
    """Tokens of the query alone."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that answer."""

    base: Path
    """The base model's folder."""
    adapter: Path
    """The internalized adapter's folder."""
    direct_drop: Path | None
    """The ablation's adapter, if it was trained."""
    base_gguf: Path
    """The base as llama.cpp runs it, of the same type as the shipped file."""
    shipped_gguf: Path
    """What llama.cpp serves: the base and the adapter in one, or the base."""
    shipped_adapter: Path | None
    """The adapter's GGUF where the base is served with it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What every arm said, before anything is scored."""

    answers: dict[str, list[str]]
    """One for each test query."""
    costs: dict[str, dict[str, float]]
    """prompt_tokens (mean), and ttft_ms and latency_ms where an arm was timed."""


def answer(
    weights: Weights,
    test: TestSet,
    *,
    generation: Generation,
    tokenizer: Any,
    ends: frozenset[int],
    progress: Progress,
) -> Answered:
    """Answer the whole test set with every arm.

    `base_query_only`, `base_full_prompt`, `direct_drop` and `internalized` answer in MLX, `base_full_prompt_cached` and
    `shipped` in llama.cpp. Times are medians over the first `timed_requests` queries in llama.cpp, in milliseconds.
    """
    answers: dict[str, list[str]] = {}
    arms: dict[str, dict[str, float]] = {name: {} for name in TITLES}

    def keep(arm: str, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        answers[arm] = [tokenizer.decode(completion, skip_special_tokens=True) for completion in completions]
        arms[arm]["prompt_tokens"] = mean(len(prompt) for prompt in prompts)

    def in_mlx(arm: str, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> None:
        completions = generate(
            load_base(weights.base, adapter),
            prompts,
            ends=ends,
            max_tokens=generation.max_tokens,
            batch_size=generation.batch_size,
            progress=progress,
            name=TITLES[arm],
        )
        keep(arm, prompts, completions)

    def time_arm(arm: str, timed: Timed) -> None:
        arms[arm] |= {"ttft_ms": timed.ttft_ms, "latency_ms": timed.latency_ms}

    in_mlx("base_query_only", None, test.bare)
    in_mlx("base_full_prompt", None, test.full)
    in_mlx("internalized", weights.adapter, test.bare)
    if weights.direct_drop is None:
        del arms["direct_drop"]
    else:
        in_mlx("direct_drop", weights.direct_drop, test.bare)

    limits: dict[str, Any] = {"ends": ends, "max_tokens": generation.max_tokens, "progress": progress}
    context = max(len(prompt) for prompt in test.full) + generation.max_tokens + 1
    some = slice(generation.timed_requests)
    with Engine(weights.base_gguf, context) as engine:
        bare = engine.answer(test.bare[some], warm=False, name="time: base, bare query", **limits)
        full = engine.answer(test.full[some], warm=False, name="time: base, full prompt", **limits)
        cached = engine.answer(test.full, warm=True, name=TITLES["base_full_prompt_cached"], **limits)
    time_arm("base_query_only", bare)
    time_arm("base_full_prompt", full)
    keep("base_full_prompt_cached", test.full, cached.answers)
    time_arm("base_full_prompt_cached", cached)
    with Engine(weights.shipped_gguf, context, weights.shipped_adapter) as engine:
        shipped = engine.answer(test.bare, warm=False, name=TITLES["shipped"], **limits)
    keep("shipped", test.bare, shipped.answers)
    time_arm("shipped", shipped)
    return Answered(answers, arms)


def score(
    answered: Answered, examples: Sequence[Example], metric: Metric, progress: Progress = silent
) -> dict[str, Any]:
    """Return what metrics.json says of the arms.

    `interval` holds the 95% bounds of a score, `same_answers` the share of the queries to which what is shipped says in
    llama.cpp exactly what the trained adapter says in MLX.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm, costs in answered.costs.items():
        marks = metric.marks(answered.answers[arm], examples, progress)
        bounds = list(interval(marks[None], metric.total))
        arms[arm] = {"score": metric.total(marks), "interval": bounds} | costs
    pairs = zip(answered.answers["shipped"], answered.answers["internalized"], strict=True)
    same = {"same_answers": mean(float(shipped == trained) for shipped, trained in pairs)}
    return {"n": len(examples), "arms": arms} | summary(arms) | same


def summary(arms: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return what the arms add up to; a ratio whose denominator is 0 is None.

    `pi_score` is the share of what the full prompt gives the base that the adapter gives without it.
    """
    bare, full, cached = arms["base_query_only"], arms["base_full_prompt"], arms["base_full_prompt_cached"]
    gain = full["score"] - bare["score"]
    return {
        "pi_score": (arms["internalized"]["score"] - bare["score"]) / gain if gain else None,
        "prompt_token_reduction": 1 - arms["shipped"]["prompt_tokens"] / full["prompt_tokens"],
        "speedup": full["latency_ms"] / arms["shipped"]["latency_ms"],
        "speedup_cached": cached["latency_ms"] / arms["shipped"]["latency_ms"],
    }
