"""Answers within a grammar: which tokens may follow, for any grammar that a client sends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilocal.llamacpp.automaton import Automaton, State
from pilocal.llamacpp.gbnf import GrammarError
from pilocal.llamacpp.gbnf_rules import read_grammar
from pilocal.llamacpp.tokenizer import Tokenizer

__all__ = ["Form", "Grammar", "GrammarError", "Vocabulary", "check_grammar"]

KEPT = 12
"""Grammars whose states are kept; a task's own grammar is used by all of its requests."""

MAX_WORK = 30_000
"""Places in a grammar that one `apply` may come to; a JSON schema takes some hundreds."""


def check_grammar(text: str) -> None:
    """Raise GrammarError for a grammar that llama.cpp refuses, or that could end or stall it when it starts.

    The error is one line: the line of the text, the rule, and what is wrong. That is a syntax error, no `root`, a rule
    that is undefined, defined twice, never ends or begins with itself, also by way of rules that may be empty, an
    endless repetition of what may be empty, or more than the limits in gbnf.py and gbnf_rules.py. References to tokens
    are refused too.
    """
    read_grammar(text)


class Vocabulary:
    """A model's tokens as bytes, and the grammars that were used with them; made once for each model.

    It is not for several threads at once.
    """

    def __init__(self, pieces: Sequence[bytes], ends: Collection[int]) -> None:
        """Take what each token writes, and which of them end an answer."""
        self.pieces = tuple(pieces)
        self.size = len(pieces)
        self.ends = frozenset(ends)
        self.bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self.lengths = np.array([len(piece) for piece in pieces], np.int64)
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.writing = np.array([i for i, piece in enumerate(pieces) if piece and i not in self.ends], np.int64)
        self._automata: OrderedDict[str, Automaton] = OrderedDict()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Return a tokenizer's vocabulary; control tokens write nothing, so that no grammar allows them."""
        pieces = [tokenizer.text([token]) for token in range(tokenizer.size)]
        return cls(pieces, [token for token in range(tokenizer.size) if tokenizer.is_end(token)])

    def automaton(self, text: str) -> Automaton:
        """Return a grammar's machine; raises GrammarError as `check_grammar` does."""
        found = self._automata.get(text) or Automaton(read_grammar(text))
        self._automata[text] = found
        self._automata.move_to_end(text)
        if len(self._automata) > KEPT:
            self._automata.popitem(last=False)
        return found


class Form:
    """Tells whole texts that fit a grammar from those that do not."""

    def __init__(self, text: str) -> None:
        """Take a grammar; raises GrammarError as `check_grammar` does."""
        self._automaton = Automaton(read_grammar(text))

    def fits(self, answer: str) -> bool:
        """Tell whether a text is whole by the grammar."""
        state = self._automaton.walk(self._automaton.start, answer.encode())
        return state is not None and state.complete


class Grammar:
    """Keeps one answer within a grammar.

    llama.cpp has a sampler for this. It ends the process when it accepts a token that does not fit, and some grammars
    that it takes stall it: the ways in which it reads an ambiguous one can double with each character. So a grammar is
    followed here, in bounded work.

    A sampling loop draws a token as it would without a grammar. If `allows(token)`, it is taken; its chance is right,
    as whatever does not fit is only ever drawn again. If not, the loop calls `apply(logits)` and draws again. Where
    `apply` returns False nothing can follow, and the answer has to end as it is. The token goes to `accept`, an end
    token too. An answer that stops elsewhere, at a stop word or a limit, is whole if `complete`.
    """

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        """Begin an answer; raises GrammarError as `check_grammar` does."""
        self._vocabulary = vocabulary
        self._automaton = vocabulary.automaton(text)
        self.state = self._automaton.start
        self._ended = False

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self.state.complete

    def allows(self, token: int) -> bool:
        """Tell whether a token fits; none does after an end token."""
        return self._after(token) is not None

    def accept(self, token: int) -> None:
        """Go on to after a token; raises ValueError, and stays where it is, if it does not fit."""
        state = self._after(token)
        if state is None:
            raise ValueError(f"token {token} does not fit the grammar")
        self.state = state
        self._ended = token in self._vocabulary.ends

    def apply(self, logits: NDArray[np.float32]) -> bool:
        """Set the logits (vocabulary,) of all tokens that do not fit to -inf, in place; return whether any is left.

        In a grammar that asks for more than MAX_WORK, long tokens may be left out that do fit.
        """
        if self._ended:
            logits[:] = -np.inf
            return False
        if self.state.mask is None:
            fits = _fitting(self._automaton, self.state, self._vocabulary)
            self._automaton.keep_mask(self.state, np.packbits(fits))
        else:
            fits = np.unpackbits(self.state.mask, count=self._vocabulary.size).view(bool)
        logits[~fits] = -np.inf
        return bool(np.isfinite(logits[fits]).any())

    def _after(self, token: int) -> State | None:
        if self._ended or not 0 <= token < self._vocabulary.size:
            return None
        if token in self._vocabulary.ends:
            return self.state if self.state.complete else None
        piece = self._vocabulary.pieces[token]
        return self._automaton.walk(self.state, piece) if piece else None


def _fitting(automaton: Automaton, start: State, vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Return which tokens fit: all of them go on together, a byte at a time, so that equal beginnings are read once."""
    fits = np.zeros(vocabulary.size, bool)
    fits[list(vocabulary.ends)] = start.complete
    classes = np.array(automaton.byte_classes)
    tokens = vocabulary.writing
    states, where = [start], np.zeros(len(tokens), np.int64)
    depth, work = 0, 0
    seen: set[tuple[State, int]] = set()
    while len(tokens):
        keys = where * automaton.classes + classes[vocabulary.bytes[vocabulary.offsets[tokens] + depth]]
        asked = np.zeros(len(states) * automaton.classes, bool)
        asked[keys] = True
        numbers: dict[State, int] = {}
        leads = np.full(len(asked), -1, np.int32)
        for key in np.flatnonzero(asked).tolist():
            if work > MAX_WORK:
                break
            state, byte_class = states[key // automaton.classes], key % automaton.classes
            following = automaton.step(state, byte_class)
            if (state, byte_class) not in seen:  # counted whether or not it is known, so that each time is alike
                seen.add((state, byte_class))
                work += 1 + len(following.items if following else ())
            if following:
                leads[key] = numbers.setdefault(following, len(numbers))
        depth += 1
        where = leads[keys]
        tokens, where = tokens[where >= 0], where[where >= 0]
        ended = vocabulary.lengths[tokens] == depth
        fits[tokens[ended]] = True
        tokens, where = tokens[~ended], where[~ended]
        states = list(numbers)
    return fits
