"""Conversations by self role playing (GenPI, NAACL 2025): one model is the agent and, in turn, who speaks to it.

Each side sees itself as the assistant and the other as the user. The agent has the template before its turns; the other
side has been told what it plays, and an example seen from where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pilocal.prompt.render import Message
from pilocal.task import Example
from pilocal.task.text import key_of

END = "[END]"
"""What a side writes where the conversation is over; never kept."""

BEGIN = "Begin a conversation."
"""What the other side is told first: chats begin with a user's turn."""

OTHER_ROLE = {"user": "assistant", "assistant": "user"}

Turn = tuple[str, str]
"""A role and what it says; "user" is who speaks to the agent."""

Reply = Callable[[Sequence[Sequence[Message]]], list[str | None]]
"""Returns what is said next in each chat; None where nothing usable is."""


def environment_prompt(template: str) -> str:
    """Return what the side that speaks to the agent is told before the conversation."""
    parts = [
        "You are the one who writes to an assistant: a user, or the system that it works on. Its messages come to you. "
        "Answer each as that user or system would: with what was asked for, the result of what it did, or the next "
        f"request. Write one message and nothing else. Where nothing is left to say, write {END}."
    ]
    if template.strip():
        parts.append(f"The assistant works by these instructions, which you do not follow yourself:\n\n{template}")
    return "\n\n".join(parts)


def swapped(turns: Sequence[Turn]) -> list[Message]:
    """Return a conversation as the other side sees it.

    >>> [(message["role"], message["content"]) for message in swapped([("user", "2+2?"), ("assistant", "4")])]
    [('user', 'Begin a conversation.'), ('assistant', '2+2?'), ('user', '4')]
    """
    return [
        Message(role="user", content=BEGIN),
        *(Message(role=OTHER_ROLE[role], content=text) for role, text in turns),
    ]


def shown_example(example: Example | None) -> list[Message]:
    """Return an example of the task as the other side sees it, to the end; nothing where there is none."""
    if example is None:
        return []
    turns = [*example.history, ("user", example.query), ("assistant", example.answer)]
    return [*swapped(turns), Message(role="assistant", content=END)]


def converse(
    begun: Sequence[Sequence[Turn]], answers: int, agent: Reply, environment: Reply, example: Example | None = None
) -> list[list[Turn]]:
    """Go on with conversations that have begun with a query and its answer, up to so many answers.

    `agent` and `environment` get chats without what they are told before. A conversation ends where either side writes
    END or nothing usable, or says again what was said before; it always ends with an answer.
    """
    talks, shown = [list(talk) for talk in begun], shown_example(example)
    going = list(range(len(talks)))
    for _ in range(answers - 1):
        asked = _said(environment, [[*shown, *swapped(talks[number])] for number in going])
        going = [number for number, text in zip(going, asked, strict=True) if _goes_on(talks[number], "user", text)]
        chats = [[Message(role=role, content=text) for role, text in talks[number]] for number in going]
        replies = _said(agent, chats)
        still = []
        for number, text in zip(going, replies, strict=True):
            said, over = _before_end(text)
            if not _goes_on(talks[number], "assistant", said):
                talks[number].pop()  # what has no answer is not kept
            elif not over:
                still.append(number)
        going = still
    return talks


def _said(speaker: Reply, chats: Sequence[Sequence[Message]]) -> list[str | None]:
    return speaker(chats) if chats else []


def _before_end(text: str | None) -> tuple[str | None, bool]:
    """Return what an answer says before END, and whether that is there."""
    said, end, _ = (text or "").partition(END)
    return said.strip() if end else text, bool(end)


def _goes_on(talk: list[Turn], role: str, text: str | None) -> bool:
    """Add a turn to a conversation and tell whether there is one: none that ends it, says nothing, or repeats one."""
    if text is None or not text.strip() or END in text or key_of(text) in {key_of(said) for _, said in talk}:
        return False
    talk.append((role, text.strip() if role == "user" else text))
    return True
