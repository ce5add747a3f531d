"""What a row of a log says: what a model was asked, what it answered, or why the row is left out."""

from __future__ import annotations

from dataclasses import dataclass

from pilocal.task.chat import Turn
from pilocal.task.json_lines import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request and its answer."""

    where: Line
    system: str
    """The system message, several joined; empty where there is none."""
    turns: tuple[Turn, ...]
    """All (role, text) turns that were sent, of the user and the assistant by turns; the last is the user's."""
    answer: str
    offered_tools: bool = False
    """Whether tools were offered, none of which was called."""

    @property
    def first(self) -> str:
        """The user's first turn."""
        return self.turns[0][1]


class LeftOut(Exception):
    """Raised for a row that cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        """One of a few, so that rows can be counted."""
        self.detail = detail
        """What this row has of it."""
        super().__init__(reason)


BROKEN = "not JSON"
HALF_LINE = "half a line at the end"
NOT_A_RECORD = "not an object"
UNKNOWN = "no request in it"
NO_ANSWER = "no answer in it"
FAILED = "a request that failed"
NO_CONTENTS = "logged without its contents"
NO_GENERATION = "a step that is no generation"
PICTURES = "pictures, sound or files"
TOOLS = "calls of tools"
EMPTY_ANSWER = "an empty answer"
EMPTY_QUERY = "an empty query"
CUT_OFF = "an answer that was cut off"
FORM = "turns in an order that no task has"
UNLEARNED = "an answer of weight 0"
LONG_LINE = "a line of more than 32 MiB"
OTHER_TEMPLATE = "another template"
NO_TEMPLATE = "without the template"
REPEATED = "a repetition of another row"
CONTAINED = "a conversation that goes on in another row"
CONTRADICTING = "another answer to the same query"
UNCLEAR = "not clear what its slots hold"
TOO_LONG = "longer than the base's context"
OVER_LIMIT = "over the limit of rows"

OFFERED = "tools were offered, and none was called"
SPACES = "white space that is not the template's"
VARIANT = "a variant of the template, learned with it"
"""Said of rows that are kept."""
