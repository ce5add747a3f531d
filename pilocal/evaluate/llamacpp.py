"""Greedy answers and their times from a GGUF file in llama.cpp, one request at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pilocal.errors import ExportError
from pilocal.progress import Progress


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
    """A GGUF file in llama.cpp, with a context of `context` tokens."""

    def __init__(self, gguf: Path, context: int) -> None:
        """Load the file; raises ExportError when llama.cpp refuses it."""
        from llama_cpp import Llama

        try:
            self._llama: Any = Llama(
                str(gguf), n_ctx=context, n_batch=512, n_threads=os.cpu_count(), n_gpu_layers=-1, verbose=False
            )
        except ValueError as error:
            raise ExportError(gguf, f"llama.cpp refuses the file: {error}", fix="export it again") from None

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        ends: frozenset[int],
        max_tokens: int,
        warm: bool,
        progress: Progress,
        name: str,
    ) -> Timed:
        """Answer the prompts greedily, one after the other.

        With `warm`, the KV cache keeps what a prompt shares with the one before, and one request beforehand warms it;
        without, every request starts from an empty cache.
        """
        answers, firsts, totals = [], [], []
        if warm:
            self._request(prompts[-1], ends, max_tokens)
        for done, prompt in enumerate(prompts, 1):
            if not warm:
                self._llama.reset()
                self._llama._ctx.kv_cache_clear()
            answer, first, total = self._request(prompt, ends, max_tokens)
            answers.append(answer)
            firsts.append(first)
            totals.append(total)
            progress(name, done, len(prompts))
        return Timed(answers, 1000 * median(firsts), 1000 * median(totals))

    def _request(self, prompt: Sequence[int], ends: frozenset[int], max_tokens: int) -> tuple[list[int], float, float]:
        answer: list[int] = []
        began = time.perf_counter()
        first = 0.0
        # generate() keeps the longest prefix that the KV cache already holds.
        for token in self._llama.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0):
            first = first or time.perf_counter() - began
            if token in ends or len(answer) == max_tokens:
                break
            answer.append(token)
        return answer, first, time.perf_counter() - began

    def close(self) -> None:
        """Free the model."""
        self._llama.close()
