"""One answer while it is made: its tokens, its text so far, where it ends, and how likely its tokens were."""

from __future__ import annotations

import codecs
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.confidence import Confidence
from pilocal.llamacpp.engine import log_softmax
from pilocal.llamacpp.sampler import Sampler
from pilocal.llamacpp.sequences import Weights
from pilocal.llamacpp.tokenizer import Tokenizer

STOP, LENGTH = "stop", "length"
"""Why an answer has ended, in OpenAI's words."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a token was, and what else was likely in its place."""

    token: int
    logprob: float
    others: tuple[tuple[int, float], ...]
    """The likeliest tokens with their log-probabilities, the likeliest first."""


class StopFinder:
    """Cuts a text that comes in pieces where the one of some texts begins that is complete first.

    >>> find = StopFinder(["END"])
    >>> find.add("the E"), find.add("ND of it"), find.found
    ('the ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Return what can be told of the text so far: nothing that may be the beginning of a stop."""
        held = self._held + text
        places = [(held.find(stop) + len(stop), held.find(stop)) for stop in self._stops if stop in held]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)[1]]
        keep = max((_beginning(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """Return what was held back, now that nothing more comes."""
        held, self._held = self._held, ""
        return held


def _beginning(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are the beginning of a stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """What the engine asks for and is told; `on_text` and `on_end` are called in its thread."""

    prompt: list[int]
    weights: Weights
    sampler: Sampler
    tokenizer: Tokenizer
    max_tokens: int
    stops: Sequence[str] = ()
    shown: Mapping[int, bytes] = field(default_factory=dict)
    """Control tokens that the text has to show."""
    likelihoods: int | None = None
    """How many likely tokens are told beside each; None tells nothing of how likely tokens were."""
    confidence: Confidence | None = None
    """Adds up how sure the model is of the answer, where somebody asks for it."""
    cancelled: threading.Event
    on_text: Callable[[], object] | None = None
    """Called when there is more text."""
    on_end: Callable[[], object]
    reused: int = 0
    """Tokens of the prompt whose keys and values were there already."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far, without its end token."""
    first_token_time: float | None = None
    """When the first token came, by `time.perf_counter()`."""
    finish: str | None = None
    """STOP or LENGTH; None while the answer goes on, or where it was given up."""
    ended: bool = False
    error: Exception | None = None
    told: deque[str] = field(default_factory=deque)
    """Pieces of text that nobody has taken yet."""
    likely: list[Likelihood] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _find: StopFinder = field(init=False)

    def __post_init__(self) -> None:
        self._find = StopFinder(self.stops)

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        """Choose the next token; None where the answer ends with it."""
        token = self.sampler.choose(logits_V)
        self.first_token_time = self.first_token_time or time.perf_counter()
        self._measure(token, logits_V)
        if token is None or self.tokenizer.is_end(token):
            self.finish = STOP
            return None
        if self.likelihoods is not None:
            self.likely.append(_likelihood(token, logits_V, self.likelihoods))
        self.tokens.append(token)
        text = self._find.add(self._decoder.decode(self.shown.get(token) or self.tokenizer.text([token])))
        if text:
            self.told.append(text)
            if self.on_text is not None:
                self.on_text()
        if self._find.found:
            self.finish = STOP
        elif len(self.tokens) >= self.max_tokens:
            self.finish = LENGTH
        return token if self.finish is None else None

    def _measure(self, token: int | None, logits_V: NDArray[np.float32]) -> None:
        """Note how sure the model is of a token; the end of the answer counts, too."""
        if self.confidence is not None and token is not None:
            self.confidence.add(token, logits_V)

    def end(self, error: Exception | None) -> None:
        """Be told that nothing more comes."""
        if not self._find.found and (text := self._find.add(self._decoder.decode(b"", final=True)) + self._find.rest()):
            self.told.append(text)
        self.error, self.ended = error, True
        self.on_end()

    def take_text(self) -> str:
        """Return the text that nobody has taken yet."""
        pieces = []
        while self.told:
            pieces.append(self.told.popleft())
        return "".join(pieces)


def _likelihood(token: int, logits_V: NDArray[np.float32], count: int) -> Likelihood:
    found_V = log_softmax(logits_V)
    best = np.argpartition(found_V, -count)[-count:] if count else np.empty(0, dtype=np.int64)
    best = best[np.argsort(-found_V[best], kind="stable")]
    return Likelihood(token, float(found_V[token]), tuple((int(each), float(found_V[each])) for each in best))
