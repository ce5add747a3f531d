"""A recurring prompt: what every request repeats, what changes inside it, and the query that remains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pilocal.logs.exchange import SPACES, UNCLEAR, Exchange, LeftOut
from pilocal.logs.frame import QUERY, Frame
from pilocal.task.chat import Turn
from pilocal.task.slots import escaped, slot_names

Pair = tuple[str, str]
"""A turn of the user and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What changes inside a recurring prompt from request to request."""

    name: str
    examples: tuple[str, ...]
    """Its most frequent values."""
    distinct: int
    """How many values it has in the rows that were looked at."""
    beside: bool = False
    """Whether it is several places side by side that no word parts."""

    @property
    def said(self) -> str:
        """A few words about it."""
        shown = " | ".join(repr(_short(value)) for value in self.examples)
        return f"{{{{{self.name}}}}}, {self.distinct} values: {shown}"


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a template: one of its messages, or what stands on one side of the query."""

    texts: tuple[str, ...]
    """As they stand in the requests."""
    names: tuple[str, ...] = ()
    """The slots between each of them and the next."""

    def written(self, clean: Callable[[str], str] = str) -> str:
        """Return the part as template.md has it, every text of it cleaned."""
        marks = [*("{{" + name + "}}" for name in self.names), ""]
        return "".join(escaped(clean(text)) + mark for text, mark in zip(self.texts, marks, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A request without what recurs."""

    turns: tuple[Turn, ...]
    """What remains: earlier turns, and the query as the last."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """What changes inside the prompt, by the names of its slots, in the template's order."""
    unlike: str = ""
    """How the template with these values is not the prompt to the last space; empty where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What many requests of a log have in common."""

    parts: tuple[Part, ...]
    """What they all repeat, with a slot for each place that changes."""
    system: Frame
    """The frame of their system message."""
    user: Frame
    """The frame of their first turn after the shots."""
    shots: tuple[Pair, ...]
    """The solved examples that recur before it."""
    opening: Pair | None
    """The first turn and its answer, where they hold the prompt and there is no system message."""
    slots: tuple[Slot, ...]
    rows: int
    """How many of the rows that were looked at have it."""
    family: int
    """Templates of one number are variants of each other: they share half of their text or more."""
    behind: bool = False
    """Whether a part of it, or all, stands behind the query."""

    @property
    def text(self) -> str:
        """The template as template.md has it."""
        return self.written()

    @property
    def words(self) -> str:
        """The template without its slots."""
        return " ".join(text for part in self.parts for text in part.texts)

    def written(self, clean: Callable[[str], str] = str) -> str:
        """Return the template as template.md has it, every text of it cleaned."""
        return "\n\n".join(part.written(clean) for part in self.parts)

    def before(self, name: str) -> str:
        """Return the text before a slot's first place."""
        return next(part.texts[part.names.index(name)] for part in self.parts if name in part.names)

    def cut(self, exchange: Exchange) -> Cut | None:
        """Return a request without this template and its shots; None where it does not have the template.

        Raises LeftOut where it is not clear what a slot holds.
        """
        values = self.system.match(exchange.system)
        turns = self.after_shots(exchange.turns)
        if values is None or turns is None:
            return None
        found = self.user.match(turns[0][1])
        if found is None or not found[QUERY]:
            return None
        for name, value in found.items():
            if values.setdefault(name, value) != value:
                raise LeftOut(UNCLEAR, f"{name} has two values: {_short(values[name])!r} and {_short(value)!r}")
        exact = self.system.fits_exactly(exchange.system, values) and self.user.fits_exactly(turns[0][1], values)
        slots = {name: values[name] for name in slot_names(self.text)}
        return Cut(turns=(("user", found[QUERY]), *turns[1:]), slots=slots, unlike="" if exact else SPACES)

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
