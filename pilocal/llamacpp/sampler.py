"""How the next token is chosen from its logits, as a request asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.grammar import Grammar, Vocabulary
from pilocal.prompt.sampling import likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a request says about the choice; the defaults are llama.cpp's own."""

    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 40
    """How many of the likeliest tokens are drawn from; 0 for all."""
    top_p: float = 0.95
    """The likeliest tokens that have this probability together."""
    min_p: float = 0.05
    """Tokens with at least this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, times how often it has them."""
    repeat_penalty: float = 1.0
    """Divides the positive logits of tokens that the answer has already, and multiplies the negative ones."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of some tokens."""
    seed: int | None = None
    """The same seed draws the same answer; None draws another each time."""
    grammar: str | None = None
    """What the answer must be, in GBNF that was checked."""

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are not compared by their logits alone."""
        return bool(self.bias or self.presence_penalty or self.frequency_penalty or self.repeat_penalty != 1)


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, choice: Choice, number: int = 0, vocabulary: Vocabulary | None = None) -> None:
        """Take what a request says; `number` tells its answers apart, `vocabulary` is needed for a grammar."""
        self._choice = choice
        self._vocabulary = vocabulary
        self._number = number
        self._said: Counter[int] = Counter()

    def choose(self, logits_V: NDArray[np.float32]) -> int | None:
        """Return the next token, and remember it; None where none fits the grammar. Call it in one thread alone."""
        choice, grammar = self._choice, self._grammar
        if choice.changes_logits:
            logits_V = self._changed(logits_V)
        token = self._picked(logits_V)
        if grammar is not None:
            if not grammar.allows(token):
                fitting_V = logits_V.copy()
                if not grammar.apply(fitting_V):
                    return None
                token = self._picked(fitting_V)
            grammar.accept(token)
        if choice.changes_logits:
            self._said[token] += 1
        return token

    @cached_property
    def _draw(self) -> np.random.Generator:
        """What tokens are drawn by; greedy answers need none."""
        seed = self._choice.seed
        return np.random.default_rng(None if seed is None else (seed % 2**64, self._number))

    @cached_property
    def _grammar(self) -> Grammar | None:
        if self._choice.grammar is None or self._vocabulary is None:
            return None
        return Grammar(self._choice.grammar, self._vocabulary)

    def _picked(self, logits_V: NDArray[np.float32]) -> int:
        return self._drawn(logits_V) if self._choice.temperature else likeliest(logits_V)

    def _changed(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        choice, changed_V = self._choice, logits_V.copy()
        if choice.bias:
            changed_V[list(choice.bias)] += np.array(list(choice.bias.values()), dtype=np.float32)
        if self._said:
            said = list(self._said)
            logits = changed_V[said]
            logits = np.where(logits > 0, logits / choice.repeat_penalty, logits * choice.repeat_penalty)
            counts = np.array([self._said[token] for token in said], dtype=np.float32)
            changed_V[said] = logits - choice.frequency_penalty * counts - choice.presence_penalty
        return changed_V

    def _drawn(self, logits_V: NDArray[np.float32]) -> int:
        choice = self._choice
        count = min(choice.top_k or len(logits_V), len(logits_V))
        tokens = np.argpartition(logits_V, -count)[-count:] if count < len(logits_V) else np.arange(len(logits_V))
        tokens = tokens[np.argsort(-logits_V[tokens], kind="stable")]
        wide = logits_V[tokens].astype(np.float64)
        shares = np.exp(wide - wide[0])
        before = np.cumsum(shares) - shares
        kept = (before < choice.top_p * shares.sum()) & (shares >= choice.min_p)
        kept[0] = True
        tokens, wide = tokens[kept], wide[kept]
        weights = np.exp((wide - wide[0]) / choice.temperature)
        reached = np.searchsorted(np.cumsum(weights), self._draw.random() * weights.sum(), side="right")
        return int(tokens[min(int(reached), len(tokens) - 1)])
