"""Taking the template and the shots out of a request: what its caller still sends, and the weights know already."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pilocal.task import Example

Turn = tuple[str, str]
"""Role and content, without white space at the ends."""
Chat = list[dict[str, Any]]
"""Messages; every content is text."""
Known = Mapping[Turn, Sequence[tuple[Turn, ...]]]
"""The turns of solved examples by their first turn, the longest first."""


def known_turns(examples: Iterable[Example]) -> Known:
    """Return the examples as the turns that a shot has in a prompt.

    >>> known_turns([Example(id="1", query=" 2+2", answer="4")])[("user", "2+2")]
    [(('user', '2+2'), ('assistant', '4'))]
    """
    known: defaultdict[Turn, set[tuple[Turn, ...]]] = defaultdict(set)
    for example in examples:
        turns = (*example.history, ("user", example.query), ("assistant", example.answer))
        solved = tuple((role, content.strip()) for role, content in turns)
        known[solved[0]].add(solved)
    return {first: sorted(solved, key=len, reverse=True) for first, solved in known.items()}


def strip(chat: Chat, template: str, known: Known) -> Chat:
    r"""Return the chat without the template, and without the known examples that came right after it.

    The template is the whole system message, or the head of the first user message. A chat without it stays whole, and
    so does one of which nothing would be left to answer.

    >>> shots = known_turns([Example(id="1", query="2+2", answer="4")])
    >>> asked = {"role": "user", "content": "3+3"}
    >>> full = [{"role": "system", "content": "Add. "}, {"role": "user", "content": "2+2"},
    ...         {"role": "assistant", "content": "4"}, asked]
    >>> strip(full, "Add.", shots)
    [{'role': 'user', 'content': '3+3'}]
    >>> strip([{"role": "user", "content": "Add.\n\n3+3"}], "Add.", shots)
    [{'role': 'user', 'content': '3+3'}]
    >>> strip(full, "Subtract.", shots) == full
    True
    """
    rest = _without_template(chat, template.strip())
    if rest is None:
        return chat
    kept, turns = rest
    while turns:
        solved = next((each for each in known.get(_turn(turns[0]), ()) if _starts(turns, each)), None)
        if solved is None:
            break
        turns = turns[len(solved) :]
    return kept + turns


def _without_template(chat: Chat, template: str) -> tuple[Chat, Chat] | None:
    """Return the other system messages at the start and the turns after them; None without a template."""
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
