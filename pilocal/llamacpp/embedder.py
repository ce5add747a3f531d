"""Embeddings: what a model makes of a text, as one vector of length 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.context import EMBEDDED, Context
from pilocal.llamacpp.model import Model


class Embedder:
    """Embeds texts in a context of its own, which is made for the first of them; a context manager for one thread.

    The model is shared: whoever answers with it goes on undisturbed, with its own keys and values.
    """

    def __init__(self, model: Model, context: int, threads: int | None = None) -> None:
        """Take a loaded model and the most tokens of a text; `threads` is one per two cores by default."""
        self._model = model
        self._longest = context
        self._threads = threads or max(1, (os.cpu_count() or 1) // 2)
        self._stack = ExitStack()
        self._context: Context | None = None
        self.width = model.width
        """How many numbers an embedding has."""

    @property
    def memory(self) -> int:
        """The bytes of the context: keys and values, and outputs for EMBEDDED tokens; 0 before the first text."""
        rows = EMBEDDED * (self._model.tokenizer.size + self.width) * 4
        return self._longest * self._model.kv_bytes + rows if self._context else 0

    def embed(self, tokens: Sequence[int], cancelled: Callable[[], bool] = lambda: False) -> NDArray[np.float32] | None:
        """Return the mean of what the model makes of each token, scaled to length 1; None once it is `cancelled`.

        A text is computed alone, so nothing depends on what else is asked. Raises RunError when there is not enough
        memory, or llama.cpp fails.
        """
        if self._context is None:
            self._context = self._stack.enter_context(
                Context(self._model, self._longest, threads=self._threads, embeddings=True)
            )
        self._context.keep(0, 0)
        total = np.zeros(self.width)
        for begin in range(0, len(tokens), EMBEDDED):
            if cancelled():
                return None
            part = tokens[begin : begin + EMBEDDED]
            self._context.decode([(token, begin + i, 0, True) for i, token in enumerate(part)])
            total += self._context.embeddings(len(part), self.width).sum(axis=0, dtype=np.float64)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def close(self) -> None:
        """Free the context."""
        self._context = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
