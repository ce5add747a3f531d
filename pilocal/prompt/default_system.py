"""The system message that a chat template writes where a chat has none, and the same chat template without it.

SmolLM2's and Qwen 2.5's chat templates do so, and every bare query pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.errors import InputError
from pilocal.prompt.render import Message
from pilocal.prompt.settle import prepend, quoted
from pilocal.prompt.tokens import Layout, layout_of

QUERY, ANSWER, NEXT = (Message(role=role, content=f"pilocal{role}") for role in ("user", "assistant", "user"))
SYSTEM = Message(role="system", content="pilocalsystem")

WHERE = "chat template"


@dataclass(frozen=True, slots=True)
class DefaultSystem:
    """How a chat without a system message begins."""

    start: str
    """As the chat template writes it, up to the end of the default system message."""
    bare: str
    """The same without that message."""

    def leave_out(self, text: str) -> str:
        """Return a rendered chat without the default system message."""
        return self.bare + text.removeprefix(self.start)


def find_default_system(layout: Layout, bos: str) -> DefaultSystem | None:
    """Return the default system message of a layout, or None where it writes none; `bos` is empty where there is none.

    What is written before a later query, behind the end of the answer, is how a turn begins; what stands before the
    first query beyond that is nobody's. Raises InputError where the two cannot be told apart.
    """
    first, _, _ = layout.text([QUERY]).partition(QUERY["content"])
    ended = layout.text([QUERY, ANSWER], add_generation_prompt=False).partition(ANSWER["content"])[2]
    later = layout.text([QUERY, ANSWER, NEXT]).partition(ANSWER["content"])[2].partition(NEXT["content"])[0]
    turn = later.removeprefix(ended)
    if first in ("", bos, turn, bos + turn):
        return None
    known = bool(turn) and turn != later
    if known and first.endswith(turn):
        start = first.removesuffix(turn)
        # SmolLM2's BOS begins every turn: there it is part of the message.
        bare = bos if start.startswith(bos) and not turn.startswith(bos) else ""
        return DefaultSystem(start, bare) if start[len(bare) :].strip() else None
    for bare in (turn, bos + turn):  # Llama 2's way: the system message stands at the head of the first query
        if known and first.startswith(bare):
            return DefaultSystem(first, bare)
    raise _unclear("it does not begin every turn alike")


def leave_out_default_system(tokenizer: Any) -> None:
    """Let the tokenizer's chat template write no system message that a chat does not have.

    Raises InputError when that cannot be said of this chat template.
    """
    former = layout_of(tokenizer)
    found = find_default_system(former, tokenizer.bos_token or "")
    if found is None:
        return
    tokenizer.chat_template = _without(former.source, found)
    layout = layout_of(tokenizer)
    turns = [QUERY, ANSWER, NEXT]
    for chat in (turns[:1], turns):
        said = {name: _text(each, chat) for name, each in (("former", former), ("now", layout))}
        if said["now"] != found.leave_out(said["former"]) or _text(former, [SYSTEM, *chat]) != _text(
            layout, [SYSTEM, *chat]
        ):
            raise _unclear("it writes chats otherwise once the message is left out")


def _without(template: str, found: DefaultSystem) -> str:
    """Return a chat template around another, whose output it cuts.

    Only what every engine for chat templates has: no slices of texts, which some count in bytes.
    """
    start, bare = quoted(found.start), quoted(found.bare)
    # Asked before, since some engines let the template inside change the messages.
    blocks = "{% set pilocal_bare = messages and messages[0]['role'] != 'system' %}{% set pilocal_chat %}"
    return (
        prepend(blocks, template.removesuffix("\n"))
        + "{% endset %}"
        + f"{{% if pilocal_bare and pilocal_chat.split({start})[0] == '' %}}"
        + f"{{{{ {bare} + (pilocal_chat.split({start})[1:] | join({start})) }}}}"
        + "{% else %}{{ pilocal_chat }}{% endif %}"
    )


def _text(layout: Layout, chat: Sequence[Message]) -> str:
    """Return a chat as it is written, or what is said where it is refused."""
    try:
        return layout.text(chat)
    except InputError as error:
        return error.problem


def _unclear(got: str) -> InputError:
    what = "the system message that it writes by default cannot be left out"
    return InputError(WHERE, what, got=got, fix="set [serving] default_system = true, or give another chat_template")
