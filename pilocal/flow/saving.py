"""What a run will save in every request, and how many requests pay for its training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilocal.base.base import Base
from pilocal.evaluate.score import break_even
from pilocal.flow.context import Context
from pilocal.flow.rendering import RenderedStage
from pilocal.packages import is_installed
from pilocal.training.memory import Need

MONEY = "money, a million times"

TIMED = 3
"""Requests of which the median is taken, the first twice: at first the weights are read from the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Money per million tokens, in any currency."""

    prompt: float
    """For a request's prompt."""
    training: float
    """For the rows that are trained on."""


@dataclass(frozen=True, slots=True)
class Saving:
    """What every request saves."""

    before: float
    """Tokens of the prompt of the first stage: the whole template and its shots, mean over the training rows."""
    after: float
    """Tokens of what is asked once the training is over, mean as well."""
    trained: int
    """Tokens of the task's rows that the training reads, prompts and answers; a shared beginning counts in each row."""
    seconds: float | None
    """Of the whole training; None without a probe."""
    first_ms: tuple[float, float] | None = None
    """Milliseconds to the first token before and after, in llama.cpp here, with nothing kept from request to request;
    None where that was not measured."""

    @property
    def requests(self) -> int | None:
        """After how many requests as many tokens were saved as the training reads; None for never."""
        return break_even(self.trained, self.before - self.after)

    @property
    def requests_in_time(self) -> int | None:
        """After how many requests as much time was saved here as the training takes; None for never or not known."""
        if self.seconds is None or self.first_ms is None:
            return None
        return break_even(1000 * self.seconds, self.first_ms[0] - self.first_ms[1])

    def requests_in_money(self, prices: Prices) -> int | None:
        """After how many requests as much money was saved as the training costs; None for never."""
        return break_even(self.trained * prices.training, (self.before - self.after) * prices.prompt)

    def lines(self, prices: Prices | None) -> list[tuple[str, float, float, int | None]]:
        """Return what a request takes now and in the end, and after how many requests that has paid for the training.

        Each has its name first. Money is that of a million requests; what is not known, or costs nothing now, has no
        line.
        """
        found = [("prompt tokens", self.before, self.after, self.requests)]
        if self.first_ms:
            found.append(("ms to the first token", *self.first_ms, self.requests_in_time))
        if prices:
            before, after = (tokens * prices.prompt for tokens in (self.before, self.after))
            found.append((MONEY, before, after, self.requests_in_money(prices)))
        return [line for line in found if line[1]]


def saving(context: Context, stages: Sequence[RenderedStage], needs: Sequence[Need | None], *, timed: bool) -> Saving:
    """Return what a run saves, from its rendered stages and what each needs.

    `timed` asks llama.cpp, if the base is a GGUF file or was made into one before.
    """
    size = context.task.training.batch_size
    read = sum(stage.budget.steps * _tokens_of_a_step(stage, size) for stage in stages)
    file = _in_gguf(context.base) if timed else None
    first_ms = _first_ms(context, stages, file) if file else None
    seconds = [need.seconds for need in needs if need and need.seconds is not None]
    before, after = (stages[number].budget.prompt_tokens for number in (0, -1))
    return Saving(before, after, round(read), sum(seconds) if seconds else None, first_ms)


def _tokens_of_a_step(stage: RenderedStage, size: int) -> float:
    """Return the mean over an epoch, whose last batch may be smaller."""
    return sum(len(row.tokens) for row in stage.train) / math.ceil(len(stage.train) / size)


def _in_gguf(base: Base) -> Path | None:
    """Return the base as llama.cpp reads it; None where no export has made that yet."""
    if base.gguf or not is_installed("llama_cpp"):
        return base.gguf
    from pilocal.export.lossless import known_base

    made = known_base(base)
    return made.path if made else None


def _first_ms(context: Context, stages: Sequence[RenderedStage], file: Path) -> tuple[float, float]:
    """Return the milliseconds to the first token with the whole prompt and in the end, of requests that are timed."""
    from pilocal.llamacpp.engine import Engine

    asked = [[row.tokens[: row.offset] for row in stage.train[:TIMED]] for stage in (stages[0], stages[-1])]
    longest = max(len(prompt) for prompts in asked for prompt in prompts)
    show, never = context.progress, frozenset[int]()
    with Engine(file, longest + 1) as engine:
        before, after = (
            engine.answer([*some[:1], *some], ends=never, max_tokens=0, warm=False, progress=show, name=name).ttft_ms
            for some, name in zip(asked, ("time with the prompt", "time without"), strict=True)
        )
    return before, after
