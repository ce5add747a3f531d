"""A recurring prompt: what every request repeats, what changes inside it, and the query that remains."""

from __future__ import annotations

from dataclasses import dataclass

from pilocal.logs.exchange import Exchange
from pilocal.logs.frame import Frame
from pilocal.task.chat import Turn

Pair = tuple[str, str]
"""A turn of the user and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a recurring prompt changes from request to request."""

    role: str
    """Whose message it is in: system or user."""
    line: int
    """The line of that message, counted from 1."""
    around: tuple[str, str]
    """What its values begin and end with."""
    examples: tuple[str, ...]
    """A few of its values, whole sentences or lines."""
    distinct: int
    """How many values it has in the rows that were looked at."""

    @property
    def said(self) -> str:
        """A line about it."""
        shown = " | ".join(repr(_short(value)) for value in self.examples)
        return f"line {self.line} of the {self.role} message changes, {self.distinct} values: {shown}"


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A request without what recurs."""

    changing: str
    """What the prompt's changing places hold, each on a line of its own."""
    turns: tuple[Turn, ...]
    """What remains: earlier turns, and the query as the last."""

    @property
    def whole(self) -> tuple[Turn, ...]:
        """The turns with what changes in front of the first of them, as it travels with the bare query."""
        if not self.changing:
            return self.turns
        (role, text), *rest = self.turns
        return ((role, f"{self.changing}\n\n{text}"), *rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What many requests of a log have in common."""

    text: str
    """What they all repeat, without the places that change."""
    system: Frame
    """The frame of their system message."""
    user: Frame
    """The frame of their first turn after the shots; its pivot is the query."""
    shots: tuple[Pair, ...]
    """The solved examples that recur before it."""
    opening: Pair | None
    """The first turn and its answer, where they hold the prompt and there is no system message."""
    places: tuple[Place, ...]
    rows: int
    """How many of the rows that were looked at have it."""
    family: int
    """Templates of one number are variants of each other: they share half of their text or more."""
    behind: bool = False
    """Whether a part of it, or all, stands behind the query."""

    def cut(self, exchange: Exchange) -> Cut | None:
        """Return a request without this template and its shots; None where it does not have the template."""
        held = self.system.match(exchange.system)
        turns = self.after_shots(exchange.turns)
        if held is None or turns is None:
            return None
        found = self.user.match(turns[0][1])
        if found is None:
            return None
        query = "\n\n".join(part for part in found if part)
        if not query:
            return None
        return Cut(changing="\n".join(part for part in held if part), turns=(("user", query), *turns[1:]))

    def after_shots(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
        """Return the turns after the opening and the shots; None where the opening is missing."""
        if self.opening:
            if pairs_of(turns)[:1] != [self.opening]:
                return None
            turns = turns[2:]
        known = frozenset(self.shots)
        for pair in pairs_of(turns):
            if pair not in known:
                break
            turns = turns[2:]
        return turns

    def unlike(self, exchange: Exchange) -> str:
        """Return what a request without this template lacks of it, for people."""
        turns = self.after_shots(exchange.turns) or exchange.turns
        missing = self.system.missing(exchange.system) or self.user.missing(turns[0][1])
        return f"it lacks {_short(missing)!r}" if missing else "it has text where the template has none"


def pairs_of(turns: tuple[Turn, ...]) -> list[Pair]:
    """Return each of the user's turns with its answer; the last has none."""
    return [(turns[i][1], turns[i + 1][1]) for i in range(0, len(turns) - 1, 2)]
