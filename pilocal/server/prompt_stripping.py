"""Removes the template and the shots that old callers still send, since the weights know them already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pilocal.task import Example

Turn = tuple[str, str]
"""Role and content, without white space at the ends."""
Chat = list[dict[str, Any]]
"""Messages; every content is text."""
ShotTurns = Mapping[Turn, Sequence[tuple[Turn, ...]]]
"""The turns of every possible shot, by its first turn; the longest come first."""


def shot_turns(examples: Iterable[Example]) -> ShotTurns:
    """Return the turns that each example has in a prompt where it is a shot.

    >>> shot_turns([Example(id="1", query=" 2+2", answer="4")])[("user", "2+2")]
    [(('user', '2+2'), ('assistant', '4'))]
    """
    by_first_turn: defaultdict[Turn, set[tuple[Turn, ...]]] = defaultdict(set)
    for example in examples:
        turns = (*example.history, ("user", example.query), ("assistant", example.answer))
        solved = tuple((role, content.strip()) for role, content in turns)
        by_first_turn[solved[0]].add(solved)
    return {first: sorted(solved, key=len, reverse=True) for first, solved in by_first_turn.items()}


def strip_prompt(chat: Chat, template: str, shots: ShotTurns) -> Chat:
    r"""Return the chat without the template and without the shots right after it.

    The template is a whole system message, or the start of the first user message. A chat without it stays as it is,
    and so does one of which nothing would be left to answer.

    >>> shots = shot_turns([Example(id="1", query="2+2", answer="4")])
    >>> asked = {"role": "user", "content": "3+3"}
    >>> full = [{"role": "system", "content": "Add. "}, {"role": "user", "content": "2+2"},
    ...         {"role": "assistant", "content": "4"}, asked]
    >>> strip_prompt(full, "Add.", shots)
    [{'role': 'user', 'content': '3+3'}]
    >>> strip_prompt([{"role": "user", "content": "Add.\n\n3+3"}], "Add.", shots)
    [{'role': 'user', 'content': '3+3'}]
    >>> strip_prompt(full, "Subtract.", shots) == full
    True
    """
    stripped = _without_template(chat, template.strip())
    if stripped is None:
        return chat
    kept, turns = stripped
    while turns:
        solved = next((each for each in shots.get(_turn(turns[0]), ()) if _starts(turns, each)), None)
        if solved is None:
            break
        turns = turns[len(solved) :]
    return kept + turns


def _without_template(chat: Chat, template: str) -> tuple[Chat, Chat] | None:
    """Return the other leading system messages and the turns after them; None when the template is not there."""
    start = next((i for i, message in enumerate(chat) if message["role"] != "system"), len(chat))
    kept, turns = chat[:start], chat[start:]
    if not template or not turns:
        return None
    systems = [message["content"].strip() for message in kept]
    if template in systems:
        number = systems.index(template)
        return kept[:number] + kept[number + 1 :], turns
    first = turns[0]["content"].lstrip() if turns[0]["role"] == "user" else ""
    rest = first.removeprefix(template)
    inside_a_word = template[-1].isalnum() and rest[:1].isalnum()
    if rest == first or not rest.strip() or inside_a_word:
        return None
    return kept, [{**turns[0], "content": rest.lstrip()}, *turns[1:]]


def _starts(turns: Chat, solved: Sequence[Turn]) -> bool:
    """Tell whether the turns start with the solved example and go on after it."""
    return len(turns) > len(solved) and all(
        _turn(message) == turn for message, turn in zip(turns, solved, strict=False)
    )


def _turn(message: Mapping[str, Any]) -> Turn:
    return message["role"], message["content"].strip()
