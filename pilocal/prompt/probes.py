"""Chats that show whether a file is served with the tokens that training saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypedDict

from pilocal.errors import InputError
from pilocal.prompt.pre_tokenizers import ascii_alone
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import prompt_tokens

ODD = "a  b\n\n<|eot_id|></s><|im_end|>[/INST] <|fim_prefix|> cafe\u0301 \u65e5\u672c \u05e9\u05dc \U0001f600\r\n\tz"
"""Texts of control tokens, blanks, an accent of its own and letters of other scripts."""


ODD_ASCII = "".join(letter for letter in ODD if letter.isascii())
"""The same for a tokenizer of which llama.cpp follows ASCII text alone."""


class Probe(TypedDict):
    """A chat and the tokens that training would ask the model with."""

    messages: list[Message]
    tokens: list[int]


def probe_chats(query: str, odd_text: str = ODD) -> list[list[Message]]:
    """Return chats around a query: bare, with a system message, with a blank one, of several turns, and odd ones."""
    asked, odd = Message(role="user", content=query), Message(role="user", content=odd_text)
    system, blank = (Message(role="system", content=text) for text in ("Be brief.", " "))
    turns = [asked, Message(role="assistant", content="x"), odd]
    return [[asked], [system, asked], [blank, asked], turns, [system, *turns], [odd]]


def make_probes(query: str, tokenizer: Any) -> list[Probe]:
    """Return the chats, of those that the base's chat template accepts, with the tokens that training makes of them."""
    probes = []
    for chat in probe_chats(query, ODD_ASCII if ascii_alone(tokenizer) else ODD):
        with suppress(InputError):
            probes.append(Probe(messages=chat, tokens=prompt_tokens(chat, tokenizer)))
    return probes


def first_difference(probes: Sequence[Mapping[str, Any]], cut: Callable[[Sequence[Message]], list[int]]) -> str | None:
    """Return the roles of the first chat that `cut` makes other tokens of, or None."""
    for probe in probes:
        if cut(probe["messages"]) != probe["tokens"]:
            return ", ".join(message["role"] for message in probe["messages"])
    return None
