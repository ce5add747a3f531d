"""Confidence: how sure a served model is of its answers, and under which threshold the full prompt answers better.

The threshold is chosen on validation examples. Of all that are possible it is the one with the best score, if the full
prompt answers what lies under it; of several such, the lowest. Where none scores better than the served files alone,
there is no threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pilocal.evaluate.scoring.metrics import Metric
from pilocal.llamacpp.batch_engine import BatchEngine
from pilocal.llamacpp.confidence import Confidence
from pilocal.llamacpp.grammar import Vocabulary
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.sampler import Choice, Sampler
from pilocal.progress import Progress
from pilocal.prompt.tokens import common_prefix
from pilocal.run_folder.calibration import Calibration
from pilocal.task import Example

AT_ONCE = 8
"""Answers that are computed together."""

LEAST_GAIN = 1e-9
"""What a score must rise by to be better, and not rounded otherwise."""

EVERYTHING = 1.0
"""The threshold under which every answer lies: no log-probability is above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What llama.cpp answers with, as the server does."""

    gguf: Path
    adapter: Path | None = None
    grammar: str | None = None
    """What every answer must be, in GBNF."""
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer, and how sure the model was of it."""

    text: str
    confidence: float | None
    """Mean log-probability of its tokens, in nats; None where the model said nothing at all."""


class _Measured:
    """Chooses the tokens of an answer, and adds up how sure the model is of them."""

    def __init__(self, sampler: Sampler) -> None:
        self._choose = sampler.choose
        self.confidence = Confidence()

    def __call__(self, logits_V: NDArray[np.float32]) -> int | None:
        token = self._choose(logits_V)
        if token is not None:
            self.confidence.add(token, logits_V)
        return token


def speak(source: Source, prompts: Sequence[Sequence[int]], progress: Progress, title: str) -> list[Spoken]:
    """Return the greedy answers to some prompts, AT_ONCE of them computed together.

    Raises ModelError when llama.cpp refuses a file, RunError when it fails or memory is missing.
    """
    if not prompts:
        return []
    longest, most = max(map(len, prompts)) + source.max_tokens + 1, source.max_tokens
    clients, prefix = min(AT_ONCE, len(prompts)), common_prefix(prompts)
    choice = Choice(temperature=0, grammar=source.grammar)
    with Model(source.gguf, source.adapter) as model:
        vocabulary = Vocabulary.of(model.tokenizer) if source.grammar else None
        measured = [_Measured(Sampler(choice, vocabulary=vocabulary)) for _ in prompts]
        with BatchEngine(model, clients=clients, longest=longest, prefix=prefix) as engine:
            done = partial(progress, title, total=len(prompts))
            answered, _ = engine.answer(prompts, max_tokens=most, choosers=measured, done=done)
        texts = [model.tokenizer.text(each.tokens).decode(errors="replace") for each in answered]
    return [Spoken(text, each.confidence.mean) for text, each in zip(texts, measured, strict=True)]


def order_of(spoken: Sequence[Spoken]) -> list[int]:
    """Return the numbers of answers, the least confident first.

    >>> order_of([Spoken("a", -0.1), Spoken("b", None), Spoken("c", -2.0)])
    [1, 2, 0]
    """
    return sorted(range(len(spoken)), key=lambda number: _sure(spoken[number].confidence))


def _sure(confidence: float | None) -> float:
    return -math.inf if confidence is None else confidence


def are_right(
    answers: Sequence[str], examples: Sequence[Example], marks: NDArray[np.float64], metric: Metric
) -> list[bool]:
    """Tell of each answer whether no other could be better: it has the full mark, or is the reference."""
    found = []
    for number, (answer, example) in enumerate(zip(answers, examples, strict=True)):
        full = metric.total(marks[number : number + 1]) >= 1 - LEAST_GAIN
        found.append(full or answer.strip() == example.answer.strip())
    return found


def doubtful(order: Sequence[int], right: Sequence[bool]) -> list[int]:
    """Return the first of an order, up to the last that is not right: further down, falling back could only lose.

    >>> doubtful([2, 0, 1, 3], [True, False, True, True])
    [2, 0, 1]
    """
    wrong = [place for place, number in enumerate(order) if not right[number]]
    return list(order[: wrong[-1] + 1]) if wrong else []


def calibrate(
    spoken: Sequence[Spoken],
    marks: NDArray[np.float64],
    right: Sequence[bool],
    full: NDArray[np.float64],
    metric: Metric,
) -> Calibration:
    """Return the threshold, and what it does.

    `marks` are those of the answers, (N, S), and `right` tells which of them could not be better. `full` are the marks
    of the full prompt's answers, (M, S), in the order of `doubtful`.
    """
    order = order_of(spoken)
    sure = [_sure(spoken[number].confidence) for number in order]
    own = marks[order]
    alone = metric.total(own)
    best, most = 0, alone
    for count in range(1, len(full) + 1):
        if count == len(order) or sure[count - 1] < sure[count]:
            score = metric.total(np.concatenate([full[:count], own[count:]]))
            if score > most + LEAST_GAIN:
                best, most = count, score
    return Calibration(
        threshold=_between(sure, best) if best else None,
        examples=len(order),
        wrong=sum(not one for one in right),
        unsure=best,
        score=alone,
        score_with_fallback=most,
    )


def _between(sure: Sequence[float], count: int) -> float:
    """Return the threshold that the first `count` lie under: halfway to the next."""
    if count == len(sure):
        return EVERYTHING
    low, high = sure[count - 1], sure[count]
    return (low + high) / 2 if math.isfinite(low) else high
