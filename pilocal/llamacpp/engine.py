"""A GGUF file in llama.cpp, one request at a time: greedy answers and their times, and probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.context import BATCH, Context
from pilocal.llamacpp.model import Model
from pilocal.progress import Progress
from pilocal.prompt.sampling import Choose, Sampling, likeliest


@dataclass(frozen=True, slots=True)
class Timed:
    """What a list of requests got, and how long one took."""

    answers: list[list[int]]
    """Completions without their end token."""
    ttft_ms: float
    """Median time to the first token, in milliseconds."""
    latency_ms: float
    """Median time to the whole answer, in milliseconds."""


class Engine:
    """A GGUF file, with an adapter's beside it if one is given; a context manager, to be used in a `with`."""

    def __init__(self, gguf: Path, context: int, adapter: Path | None = None) -> None:
        """Load the files into a context of `context` tokens.

        Raises ModelError when llama.cpp refuses a file, RunError when there is not enough memory.
        """
        self._choose: Choose = likeliest
        self._kept: list[int] = []
        """The tokens whose keys and values are in the KV cache."""
        with ExitStack() as stack:
            model = stack.enter_context(Model(gguf, adapter))
            self._context = stack.enter_context(Context(model, context))
            self._stack = stack.pop_all()

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        ends: frozenset[int],
        max_tokens: int,
        warm: bool,
        progress: Progress,
        name: str,
        sampling: Sampling | None = None,
    ) -> Timed:
        """Answer the prompts, one after the other: greedily, or as `sampling` says.

        With `warm`, the KV cache keeps what a prompt shares with the one before, and one request beforehand warms it;
        without, every request starts from an empty cache.
        """
        answers, firsts, totals = [], [], []
        self._choose = likeliest
        if warm:
            self._request(prompts[-1], ends, max_tokens)
        for done, prompt in enumerate(prompts, 1):
            if not warm:
                self._forget()
            self._choose = sampling.chooser(done) if sampling else likeliest
            answer, first, total = self._request(prompt, ends, max_tokens)
            answers.append(answer)
            firsts.append(first)
            totals.append(total)
            progress(name, done, len(prompts))
        return Timed(answers, 1000 * median(firsts), 1000 * median(totals))

    def _request(self, prompt: Sequence[int], ends: frozenset[int], max_tokens: int) -> tuple[list[int], float, float]:
        """Return a prompt's answer, and the seconds to its first token and to its end."""
        answer: list[int] = []
        began = time.perf_counter()
        token = self._prefill(prompt)
        first = time.perf_counter() - began
        while token not in ends and len(answer) < max_tokens:
            answer.append(token)
            token = self._append([token])
        return answer, first, time.perf_counter() - began

    def _prefill(self, prompt: Sequence[int]) -> int:
        """Compute a prompt, but for the longest prefix that the KV cache holds; return the token that follows."""
        shared = 0
        for kept, token in zip(self._kept, prompt[:-1], strict=False):
            if kept != token:
                break
            shared += 1
        self._kept = self._kept[:shared]
        if not self._context.keep(0, shared):
            self._forget()
        return self._append(prompt[len(self._kept) :])

    def _append(self, tokens: Sequence[int]) -> int:
        """Compute tokens after those that the KV cache holds; return the token that follows."""
        for begin in range(0, len(tokens), BATCH):
            part, start = tokens[begin : begin + BATCH], len(self._kept)
            last = begin + len(part) == len(tokens)
            wanted = len(part) - 1 if last else None
            self._context.decode([(token, start + i, 0, i == wanted) for i, token in enumerate(part)])
            self._kept += part
        return self._choose(self._context.logits(-1))

    def _forget(self) -> None:
        self._context.clear()
        self._kept = []

    def log_probs(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return the log-probabilities of what follows each token from number `first` on, (tokens - first, vocabulary).

        The KV cache is cleared before.
        """
        return log_softmax(self.logits(tokens, first))

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return the logits that `log_probs` is made of."""
        self._forget()
        found = np.empty((len(tokens) - first, self._context.vocabulary_size), dtype=np.float32)
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            self._context.decode([(token, begin + i, 0, True) for i, token in enumerate(part)])
            for i in range(max(0, first - begin), len(part)):
                found[begin + i - first] = self._context.logits(i)
        self._kept = list(tokens)
        return found

    def close(self) -> None:
        """Free context and model."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities, along the last axis.

    >>> log_softmax(np.zeros((1, 2), dtype=np.float32)).round(4).tolist()
    [[-0.6930999755859375, -0.6930999755859375]]
    """
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - highest
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return KL(reference, other) of log-probabilities (tokens, vocabulary), summed over the tokens, in nats."""
    wide = reference.astype(np.float64)
    return float((np.exp(wide) * (wide - other)).sum())
