"""One engine for many requests at once: continuous batching over the sequences of one context.

A thread of its own computes one batch after the other. A new request joins at the next token. What one adapter's
requests need is computed together; those of another adapter keep their keys and values, and wait their turn.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import RunError
from pilocal.llamacpp.context import BATCH, Context, Entry
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.sequences import Held, Sequences, Weights, common_length

BASE: Weights = ("", 1.0)
"""The base, without an adapter."""

TURN = 8
"""Batches that one adapter's requests get before another's."""

SLICE = 16
"""Tokens of prompts that a batch with any of them has at least, however long its answers wait for them."""

LONGER = 1.5
"""How much longer a batch may take with prompts than its answers take alone, as a share of that."""

FULL = 8
"""Batches that take as many tokens of prompts as there is room for, before one with answers alone."""

LATEST = 0.4
"""The weight of the latest batch in what is known about its time."""

SLOW = 64
"""A batch of more tokens can be given up when all that asked for it have gone."""


class Asked(Protocol):
    """What the engine knows of a request."""

    prompt: list[int]
    """Its tokens; one at least."""
    weights: Weights
    """The adapter that answers, and its strength."""
    cancelled: threading.Event
    """Set when nobody waits for the answer any more; it ends at the next batch."""
    reused: int
    """Its tokens whose keys and values were there already when it began; set by the engine."""

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        """Choose the next token from its logits, which are valid during the call alone; None ends the answer."""

    def end(self, error: Exception | None) -> None:
        """Be told that nothing more comes: the answer has ended, was cancelled, or failed."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A request that is being answered."""

    asked: Asked
    tokens: list[int]
    """Prompt and answer so far."""
    held: Held
    answering: bool = False
    """Whether its prompt has been read."""

    @property
    def weights(self) -> Weights:
        return self.asked.weights

    @property
    def left(self) -> int:
        """Tokens that are to be computed before the next one is known."""
        return len(self.tokens) - len(self.held.tokens)


@dataclass(slots=True)
class Pace:
    """How long batches take, to keep prompts from making answers wait."""

    answers: float = 0.0
    """Seconds of a batch that has answers alone."""
    token: float = 0.0
    """Seconds of a prompt's token in a batch of many."""
    full: int = 0
    """Batches whose room was taken up by prompts since the last that had answers alone."""
    given: int = BATCH
    """The room of the latest batch."""

    def note(self, seconds: float, answers: int, prompts: int) -> None:
        """Take the time of a batch with so many tokens of each."""
        if not prompts:
            self.full = 0
            self.answers += (seconds - self.answers) * (LATEST if self.answers else 1.0)
            return
        self.full += answers > 0 and prompts == self.given
        if prompts >= SLICE:
            each = max(0.0, seconds - (self.answers if answers else 0.0)) / prompts
            self.token += (each - self.token) * (LATEST if self.token else 1.0)

    def room(self, answers: int) -> int:
        """Return how many tokens of prompts fit a batch with so many answers, by how much longer it takes with them.

        The longer a prompt, the longer do answers take beside it, too. So now and then there are none, to see how long.
        """
        affordable = int(LONGER * self.answers / self.token) if self.token else SLICE
        room = min(BATCH - answers, max(SLICE, affordable))
        self.given = BATCH if not answers else 0 if self.full >= FULL else room
        return self.given


@dataclass(slots=True)
class Counts:
    """What an engine has done."""

    batches: int = 0
    computed: int = 0
    """Tokens that were computed."""
    reused: int = 0
    """Tokens of prompts whose keys and values were there already."""
    peak: int = 0
    """The most tokens whose keys and values were there at once; a shared beginning counts once."""
    preempted: int = 0
    """Requests that had to start again, because the room was full."""


class Scheduler:
    """Answers requests to one GGUF file and its adapters; a context manager."""

    def __init__(
        self,
        model: Model,
        adapters: Mapping[str, Any],
        *,
        tokens: int,
        clients: int,
        kept: int = 0,
        threads: int | None = None,
        paced: bool = True,
    ) -> None:
        """Make room for `tokens` keys and values, `clients` requests at once, and `kept` sequences beside them.

        `adapters` are the model's, by their names. With nothing kept, each client has an equal part of the room, and no
        request uses what another has read; with one client, each is computed as in a process of its own. Unless it is
        `paced`, prompts fill up every batch however long answers wait for it, and the same requests make the same
        batches. Raises RunError when there is not enough memory.
        """
        with ExitStack() as stack:
            self._context = stack.enter_context(
                Context(model, tokens, sequences=clients + kept, shared=kept > 0, threads=threads)
            )
            self._stack = stack.pop_all()
        self._adapters = adapters
        self._clients = clients
        self.sequences = Sequences(self._context, sequences=clients + kept, tokens=tokens, reuse=kept > 0)
        self.counts = Counts()
        self._inbox: SimpleQueue[tuple[Asked, ...] | None] = SimpleQueue()
        self._waiting: deque[tuple[Asked, list[int]]] = deque()
        """Requests that are to be answered, each with its tokens so far."""
        self._slots: list[_Slot] = []
        self._turns: deque[Weights] = deque()
        """The weights of the requests that are being answered; it is the first one's turn."""
        self._left_of_turn = TURN
        self._begun: Counter[Weights] = Counter()
        """How many requests of each adapter have begun, see `_note`."""
        self._applied: Weights | None = None
        self._pace = Pace() if paced else None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pilocal-engine", daemon=True)
        self._thread.start()

    def submit(self, *asked: Asked) -> None:
        """Have requests answered, which arrive together; returns at once."""
        self._inbox.put(asked)

    def close(self) -> None:
        """End what is being answered, and free the context."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        """Compute until the engine is closed."""
        while not self._closing:
            self._receive()
            self._let_go()
            self._admit()
            group = self._group()
            if group:
                self._step(group)
        for slot in tuple(self._slots):
            self._leave(slot, None)
        for asked, _ in self._waiting:
            asked.end(None)

    def _receive(self) -> None:
        """Take what was submitted; wait for it where there is nothing else to do."""
        idle = not self._slots and not self._waiting
        try:
            while True:
                asked = self._inbox.get(block=idle)
                idle = False
                if asked is None:
                    self._closing = True
                else:
                    self._waiting += ((each, list(each.prompt)) for each in asked)
        except Empty:
            pass

    def _let_go(self) -> None:
        """End the requests that nobody waits for any more."""
        for slot in [slot for slot in self._slots if slot.asked.cancelled.is_set()]:
            self._leave(slot, None)
        gone = [each for each in self._waiting if each[0].cancelled.is_set()]
        for each in gone:
            self._waiting.remove(each)
            each[0].end(None)

    def _admit(self) -> None:
        """Begin with requests that wait, while there is room."""
        while len(self._slots) < self._clients and (chosen := self._next()) is not None:
            asked, tokens = self._waiting[chosen]
            shared = self.sequences.common(asked.weights, tokens)
            if not self.sequences.make_room(len(tokens) - shared + 1) and self._slots:
                return
            held = self.sequences.begin(asked.weights, tokens)
            if held is None:
                return
            del self._waiting[chosen]
            asked.reused = min(len(held.tokens), len(asked.prompt))  # one that starts again has more than its prompt
            self.counts.reused += len(held.tokens)
            self._note(asked.weights)
            self._slots.append(_Slot(asked, tokens, held))
            if asked.weights not in self._turns:
                self._turns.append(asked.weights)

    def _note(self, weights: Weights) -> None:
        """Count a request that begins; those of an adapter that has none any more count until another's begin."""
        if not self._begun[weights]:
            active = {slot.weights for slot in self._slots}
            self._begun = Counter({each: count for each, count in self._begun.items() if each in active})
        self._begun[weights] += 1

    def _next(self) -> int | None:
        """Return which of those that wait is next; nobody waits behind one whose beginning is being read by another.

        What one adapter's requests need is computed together. So an adapter begins with a roomful of them before those
        of an adapter that has not begun, and then these.
        """
        best: tuple[int, int] | None = None
        for i, (asked, tokens) in enumerate(self._waiting):
            begun = self._begun[asked.weights]
            rank = 1 if not begun else 0 if begun < self._clients else 2
            if (best is None or rank < best[0]) and not self._is_being_read(asked.weights, tokens):
                best = rank, i
                if rank == 0:
                    break
        return best and best[1]

    def _is_being_read(self, weights: Weights, tokens: list[int]) -> bool:
        """Tell whether much of these tokens is being read for another request, to be used again."""
        return self.sequences.reuse and any(
            common_length(slot.tokens, tokens, len(tokens) - 1) - len(slot.held.tokens) > SLICE
            for slot in self._slots
            if slot.weights == weights and not slot.answering
        )

    def _group(self) -> list[_Slot]:
        """Return the requests whose turn it is."""
        while self._turns:
            group = [slot for slot in self._slots if slot.weights == self._turns[0]]
            if not group:
                self._turns.popleft()
            elif self._left_of_turn or len(self._turns) == 1:
                self._left_of_turn = max(0, self._left_of_turn - 1)
                return group
            else:
                self._turns.rotate(-1)
            self._left_of_turn = TURN
        return []

    def _step(self, group: Sequence[_Slot]) -> None:
        """Compute one batch for some requests, and let each that has a next token take it."""
        parts = self._parts(group)
        if not parts:
            return
        try:
            self._apply(parts[0][0].weights)
            entries: list[Entry] = []
            answering: list[_Slot] = []
            for slot, count in parts:
                begin = len(slot.held.tokens)
                fresh = slot.tokens[begin : begin + count]
                self.sequences.extend(slot.held, fresh)
                last = len(slot.held.tokens) == len(slot.tokens)
                entries += [(token, begin + i, slot.held.number, False) for i, token in enumerate(fresh)]
                if last:
                    entries[-1] = (*entries[-1][:3], True)
                    answering.append(slot)
            answers = sum(slot.answering for slot, _ in parts)
            self._decode(entries, [slot for slot, _ in parts], answers)
        except Exception as error:  # whatever it is, the requests must hear of it, and the engine go on
            for slot, _ in parts:
                self._leave(slot, error, keep=False)
            return
        if answering:
            for slot, logits_V in zip(answering, self._context.all_logits(len(answering)), strict=True):
                self._take(slot, logits_V)

    def _parts(self, group: Sequence[_Slot]) -> list[tuple[_Slot, int]]:
        """Return how many tokens each request gets of a batch; where the room is full, the latest start again later."""
        parts = self._wishes(group)
        while parts and not self.sequences.make_room(sum(count for _, count in parts)):
            latest = self._slots[-1]
            if len(self._slots) == 1:
                self._leave(latest, RunError("the engine", "the answer is longer than the room for it"), keep=False)
                return []
            self._preempt(latest)
            parts = [part for part in parts if part[0] is not latest]
        return parts

    def _wishes(self, group: Sequence[_Slot]) -> list[tuple[_Slot, int]]:
        """Return what fits a batch: answers one token each, prompts what is left, the nearest to its end first."""
        answers = [slot for slot in group if slot.answering]
        parts = [(slot, 1) for slot in answers]
        room = self._pace.room(len(answers)) if self._pace else BATCH - len(answers)
        for slot in sorted((slot for slot in group if not slot.answering), key=lambda slot: slot.left):
            if room:
                count = min(slot.left, room)
                parts.append((slot, count))
                room -= count
        return parts

    def _apply(self, weights: Weights) -> None:
        if weights == self._applied:
            return
        self._applied = None  # in case the next line fails
        name, strength = weights
        self._context.adapt(None if name == BASE[0] else self._adapters[name], strength)
        self._applied = weights

    def _decode(self, entries: Sequence[Entry], slots: Sequence[_Slot], answers: int) -> None:
        began = time.perf_counter()
        if len(entries) > SLOW:
            with self._context.abortable(lambda: all(slot.asked.cancelled.is_set() for slot in slots)):
                self._context.decode(entries)
        else:
            self._context.decode(entries)
        self._context.synchronize()
        if self._pace:
            self._pace.note(time.perf_counter() - began, answers, len(entries) - answers)
        self.counts.batches += 1
        self.counts.peak = max(self.counts.peak, self.sequences.used)
        self.counts.computed += len(entries)

    def _take(self, slot: _Slot, logits_V: NDArray[np.float32]) -> None:
        slot.answering = True
        try:
            token = slot.asked.take(logits_V)
        except Exception as error:  # a request's own fault ends it alone
            self._leave(slot, error)
            return
        if token is None:
            self._leave(slot, None)
        else:
            slot.tokens.append(token)

    def _leave(self, slot: _Slot, error: Exception | None, *, keep: bool = True) -> None:
        """End a request; what it has computed is kept, unless it may be wrong."""
        self._slots.remove(slot)
        if keep:
            self.sequences.end(slot.held)
        else:
            self.sequences.drop(slot.held)
        slot.asked.end(error)

    def _preempt(self, slot: _Slot) -> None:
        """Forget what a request has computed, and have it start again where it was once there is room."""
        self._slots.remove(slot)
        self.sequences.drop(slot.held)
        self._waiting.appendleft((slot.asked, slot.tokens))
        self.counts.preempted += 1
