"""A GGUF file in llama.cpp, one request at a time: greedy answers and their times, and probabilities."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """A GGUF file, with an adapter's beside it if one is given, in a context of `context` tokens."""

    def __init__(self, gguf: Path, context: int, adapter: Path | None = None, *, all_logits: bool = False) -> None:
        """Load the files; raises ExportError when llama.cpp refuses one. `logits` and `log_probs` need `all_logits`."""
        from llama_cpp import Llama

        options = {"n_ctx": context, "n_batch": 512, "n_threads": os.cpu_count(), "n_gpu_layers": -1}
        try:
            # Not its lora_path, with which the base would not be mapped but read.
            self._llama: Any = Llama(str(gguf), logits_all=all_logits, verbose=False, **options)
        except ValueError as error:
            raise ExportError(gguf, f"llama.cpp refuses the file: {error}", fix="export it again") from None
        if adapter is not None:
            self._add(adapter)

    def _add(self, adapter: Path) -> None:
        import llama_cpp

        loaded = llama_cpp.llama_adapter_lora_init(self._llama._model.model, bytes(adapter))
        if not loaded:
            self.close()
            raise ExportError(adapter, "llama.cpp refuses the adapter", fix="export it again")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        scales = (ctypes.c_float * 1)(1.0)
        llama_cpp.llama_set_adapters_lora(self._llama._ctx.ctx, adapters, 1, scales)

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

    def log_probs(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return the log-probabilities of what follows each token from number `first` on, (tokens - first, vocabulary).

        The KV cache is cleared before.
        """
        return log_softmax(self.logits(tokens, first))

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return the logits that `log_probs` is made of."""
        self._llama.reset()
        self._llama._ctx.kv_cache_clear()
        self._llama.eval(list(tokens))
        logits: NDArray[np.float32] = self._llama.scores[first : len(tokens)].copy()
        return logits

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities, along the last axis.

    >>> log_softmax(np.zeros((1, 2), dtype=np.float32)).round(4).tolist()
    [[-0.6930999755859375, -0.6930999755859375]]
    """
    highest = logits.max(axis=-1, keepdims=True)
    shifted = logits - highest
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
