"""How long work reports its progress, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, how much of it is done, how much there is, and a few words on how it goes."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units of `what` are finished."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """Report to nobody."""
