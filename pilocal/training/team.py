"""Data-parallel training: several processes that compute shares of the same steps.

Rank 0 leads: it alone reads the rows, decides what comes next and writes. The others follow its orders with the base
and the task's settings that they have themselves. What a step computes does not depend on how many compute it. Each
backend has a way of its own to send orders and to add up gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pilocal.prompt.tokens import Row
from pilocal.training.heartbeat import WORDS, Heartbeat


class Kind(IntEnum):
    """What the leader can order."""

    END = 0
    FIT = 1
    STEP = 2
    VALIDATE = 3
    HELP = 4
    """Compute with the leader what needs the parts of the base that the others hold."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the leader wants done next."""

    kind: Kind
    step: int = 0
    """The step's number in the whole run, from 0."""
    rate: float = 0.0
    """The step's learning rate."""
    rows: tuple[Row, ...] = ()
    """All rows of the step, of which each rank takes its part."""
    prefix: int = 0
    """How many leading tokens all rows of the stage share."""


class Team(ABC):
    """The processes of a training; made without more it is one process alone, for which nothing is ever sent."""

    rank: int = 0
    size: int = 1

    def __init__(self) -> None:
        self._heartbeat: Heartbeat | None = None
        self.busy = False
        """Whether an order is being carried out, so that no other may be given."""

    @contextmanager
    def order(self, order: Order) -> Iterator[None]:
        """Tell every other process what the leader does next, in the block."""
        self.busy = True
        if self.size > 1:
            self.exchange(order)
        yield
        self.busy = False

    def orders(self) -> Iterator[Order]:
        """Yield the leader's orders until it ends the training."""
        while (order := self.exchange(None)).kind != Kind.END:
            yield order

    def end(self) -> None:
        """Send the others home, unless they are in the middle of something, where they will notice by themselves."""
        if self.size > 1 and not self.busy:
            self.exchange(Order(Kind.END))
        self.leave()

    @abstractmethod
    def exchange(self, order: Order | None) -> Order:
        """Give an order (the leader) or get it (the others, with None); raises TrainingError when one is gone."""

    @abstractmethod
    def numbers(self, mine: Sequence[int]) -> Sequence[int]:
        """Return the leader's numbers, of 32 bits; each process gives as many."""

    def help(self, setup: Any) -> None:
        """Carry out Kind.HELP with what `training.protocol.Setup` makes, where a base is sharded over the team."""
        raise NotImplementedError

    def watch(self, address: str | None) -> None:
        """From now on notice processes that are stopped; `address` is the leader's, None where it is not known."""
        if self.size == 1:
            return
        self._heartbeat = Heartbeat(self.rank, self.size)
        if self.rank == 0:
            self.numbers(self._heartbeat.listen(address))
        else:
            self._heartbeat.connect(address, self.numbers([0] * (1 + WORDS)))

    def leave(self) -> None:
        """Be alone again; call it however the training ended."""
        if self._heartbeat is not None:
            self._heartbeat.leave()
