"""From (template at tau, shots, query) to a record: one line of mlx-lm's chat JSONL.

The template is the system message, every shot a solved turn, the query the last user turn and the answer the last
assistant turn. Where template and shots are gone, what is left is the bare query, as it will be served.

A slot of the template has the record's value in its place. Where its place is gone, the value is stated before the
first user turn, so that no row lacks it; a shot states its own values there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, TypeVar

from pilocal.task import Example
from pilocal.task.slots import fill, stated

Turn = TypeVar("Turn", bound=Mapping[str, Any])
"""One turn of a chat, from whomever."""


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


class Record(TypedDict):
    """One rendered line; the last message is the answer."""

    messages: list[Message]
    learned: NotRequired[list[int]]
    """The numbers of the messages that are learned beside the last, where a conversation has such."""


def render(template: str, shots: Sequence[Example], example: Example) -> Record:
    r"""Return the record that asks `example` after the template and the shots, with its answer.

    >>> shot, asked = Example(id="1", query="2+2", answer="4"), Example(id="2", query="3+3", answer="6")
    >>> [message["role"] for message in render("Add.", [shot], asked)["messages"]]
    ['system', 'user', 'assistant', 'user', 'assistant']
    >>> render("", [], asked)["messages"]
    [{'role': 'user', 'content': '3+3'}, {'role': 'assistant', 'content': '6'}]
    >>> talked = Example(id="3", query="And 4+4?", answer="8", history=(("user", "3+3"), ("assistant", "6")))
    >>> render("Add.", [shot], talked)["learned"]
    [4]
    >>> dated = Example(id="4", query="Which day?", answer="Monday", slots={"today": "2026-11-30"})
    >>> [render(template, [], dated)["messages"][0]["content"] for template in ("It is {{today}}.", "")]
    ['It is 2026-11-30.', 'today: 2026-11-30\n\nWhich day?']
    """
    messages: list[Message] = []
    system, left = fill(template, example.slots)
    if system.strip():
        messages.append({"role": "system", "content": system})
    begin = 0
    for solved, values in (*((shot, shot.slots) for shot in shots), (example, left)):
        begin = len(messages)
        turns: list[Message] = [{"role": role, "content": content} for role, content in solved.history]
        turns.append({"role": "user", "content": solved.query})
        turns.append({"role": "assistant", "content": solved.answer})
        messages += with_values(turns, values)
    record = Record(messages=messages)
    if example.learned:
        record["learned"] = [begin + number for number in example.learned]
    return record


def with_values(turns: Sequence[Turn], values: Mapping[str, str]) -> list[Turn]:
    r"""Return turns with the values of slots stated before what the user says first.

    >>> with_values([{"role": "user", "content": "Which day?"}], {"today": "Monday"})
    [{'role': 'user', 'content': 'today: Monday\n\nWhich day?'}]
    """
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None or not values:
        return list(turns)
    told: Any = {**turns[first], "content": stated(values) + str(turns[first]["content"])}
    return [*turns[:first], told, *turns[first + 1 :]]


def each_answer(record: Record) -> list[Record]:
    """Return a record for each answer that is learned, which ends with it.

    >>> said = [Message(role=role, content=text) for role, text in (("user", "a"), ("assistant", "b"))]
    >>> [len(one["messages"]) for one in each_answer({"messages": said * 2, "learned": [1]})]
    [2, 4]
    """
    messages = record["messages"]
    return [Record(messages=messages[: number + 1]) for number in (*record.get("learned", ()), len(messages) - 1)]


def without_blank_systems(chat: Sequence[Turn]) -> list[Turn]:
    """Return a chat without system messages that say nothing, which no row has.

    >>> without_blank_systems([{"role": "system", "content": " "}, {"role": "user", "content": "a"}])
    [{'role': 'user', 'content': 'a'}]
    """
    return [message for message in chat if message["role"] != "system" or str(message["content"] or "").strip()]
