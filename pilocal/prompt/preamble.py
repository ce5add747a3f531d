"""What stands before a query: the whole prompt at first, and what stays of it once the training is over.

What stays is the residue: nothing by default, so that a request is the bare query. A schedule that ends above zero and
the texts of `[compression] stay` leave more. Whoever asks the trained model puts it before the query: here is how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.prompt.render import Message, Record, render, with_values
from pilocal.task import Example
from pilocal.task.slots import fill, slot_names, stated_form

Choose = Callable[[Example, int], Sequence[Example]]
"""Returns so many shots for a query whose answer is not known, least similar first."""

Request = Callable[[Example], Record]
"""Returns the record that asks a query as every request does, with its answer."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """A template and a number of shots."""

    template: str = ""
    """The system message; empty for none."""
    shots: int = 0
    """How many solved examples stand before the query, chosen for each query."""
    slots: Sequence[str] = ()
    """The names of the slots whose values every request needs."""

    @property
    def user_turn(self) -> str:
        r"""What the user says first, for people to read: the query, behind the values without a place in the template.

        >>> Preamble("It is {{today}}.", slots=("today", "user")).user_turn
        'user: ...\n\nthe query'
        """
        return stated_form(name for name in self.slots if name not in slot_names(self.template))

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.template.strip()) or self.shots > 0

    def before(
        self, chat: Sequence[Mapping[str, Any]], choose: Choose, values: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Return a chat with this before it; its own system messages follow the template.

        The `values` of slots stand in their places, or are stated as `render` states them. A chat that does not end in
        a query has no shots.

        >>> shot = Example(id="1", query="2+2", answer="4")
        >>> asked = [{"role": "user", "content": "3+3"}]
        >>> [turn["content"] for turn in Preamble("Add.", 1).before(asked, lambda _, count: [shot] * count)]
        ['Add.', '2+2', '4', '3+3']
        >>> Preamble().before(asked, lambda _, count: []) == asked
        True
        """
        systems = [str(message["content"]) for message in chat if message["role"] == "system"]
        turns = [dict(message) for message in chat if message["role"] != "system"]
        template, left = fill(self.template, values or {})
        text = "\n\n".join(part for part in (template, *systems) if part.strip())
        system = [dict(Message(role="system", content=text))] if text else []
        return [*system, *self._solved(turns, choose), *with_values(turns, left)]

    def _solved(self, turns: Sequence[Mapping[str, Any]], choose: Choose) -> list[dict[str, Any]]:
        """Return the turns of the shots for a chat without system messages."""
        asked = query_of(turns) if self.shots else None
        shots = choose(asked, self.shots) if asked else ()
        return [dict(turn) for shot in shots for turn in render("", (), shot)["messages"]]

    def of(self, chat: Sequence[Message], choose: Choose, values: Mapping[str, str] | None = None) -> list[Message]:
        """Return a chat of plain turns with this before it, as `before`."""
        told = self.before(chat, choose, values)
        return [Message(role=turn["role"], content=turn["content"]) for turn in told]


NOTHING = Preamble()
"""What stands before a bare query."""


def bare(example: Example) -> Record:
    """Return the record that asks a query where nothing of the prompt stays."""
    return render("", (), example)


def query_of(turns: Sequence[Mapping[str, Any]]) -> Example | None:
    """Return the query that turns without a system message end in; None where they do not end in one."""
    if not turns or turns[-1]["role"] != "user" or any(turn["role"] not in ("user", "assistant") for turn in turns):
        return None
    *earlier, query = [(str(turn["role"]), str(turn["content"])) for turn in turns]
    return Example(id="", query=query[1], answer="", history=tuple(earlier))
