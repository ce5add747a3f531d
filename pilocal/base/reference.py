"""The base, with or without an adapter, as the program that trained it computes it: what others are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.progress import Progress
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import Row

Floats = NDArray[np.float32]


class ReferenceModel(Protocol):
    """A loaded base with its adapter."""

    def logits(self, row: Row) -> Floats:
        """Return the logits of each completion token: (C, vocabulary)."""

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        ends: frozenset[int],
        max_tokens: int,
        batch_size: int,
        progress: Progress,
        name: str,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Return for each prompt the completion, without its end token; `ends` are the ids that end one.

        It is the greedy one, or drawn as `sampling` says.
        """


LoadReference = Callable[[Base, Path | None], ReferenceModel]
"""Takes a base and the folder of an adapter; raises ModelError for damaged weights."""


def kept_loader(load: LoadReference) -> LoadReference:
    """Return a loader that keeps the model which it loaded last, for the case that it is asked for again next.

    No other model of it is in memory while one is loaded.
    """
    kept: dict[tuple[Base, Path | None], ReferenceModel] = {}

    def again(base: Base, adapter: Path | None) -> ReferenceModel:
        if (base, adapter) not in kept:
            kept.clear()
            kept[base, adapter] = load(base, adapter)
        return kept[base, adapter]

    return again


class MlxReference:
    """It in MLX."""

    def __init__(self, base: Base, adapter: Path | None) -> None:
        """Load the weights; raises ModelError when they are damaged or do not fit each other."""
        self._model = load_base(base, adapter)

    def logits(self, row: Row) -> Floats:
        """Return the logits of each completion token: (C, vocabulary)."""
        import mlx.core as mx

        found = self._model(mx.array([row.tokens[:-1]]))[0, row.offset - 1 :]
        logits: Floats = row.pick(np.array(found.astype(mx.float32)))
        return logits

    def answer(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
        """Return for each prompt the completion, without its end token."""
        from pilocal.base.generate import generate

        return generate(self._model, prompts, **how)
