"""Answers that are drawn: which token comes next by chance, always the same for the same seeds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Pick = Callable[[NDArray[np.float32]], int]
"""What chooses the next token of one answer from its logits (vocabulary,)."""


class Draw:
    """Draws each token of one answer with its probability at a temperature."""

    def __init__(self, temperature: float, seed: int, text: str) -> None:
        """Take a temperature above 0; `seed` and `text`, what is answered, decide every draw."""
        self._temperature = temperature
        self._random = np.random.default_rng((seed, *_words(text)))

    def __call__(self, logits_V: NDArray[np.float32]) -> int:
        """Return the next token."""
        wide = logits_V.astype(np.float64) / self._temperature
        upto = np.cumsum(np.exp(wide - wide.max()))
        return int(np.searchsorted(upto, self._random.random() * upto[-1], side="right").clip(0, len(upto) - 1))


def draws(temperature: float, seed: int, texts: Sequence[str]) -> list[Pick]:
    """Return what chooses the tokens of the answer to each text; nothing at temperature 0, which is greedy."""
    return [Draw(temperature, seed, text) for text in texts] if temperature else []


def _words(text: str) -> tuple[int, int]:
    """Return two numbers that stand for a text in a seed."""
    raw = text.encode("utf-8", "surrogatepass")
    return zlib.crc32(raw), zlib.adler32(raw)
