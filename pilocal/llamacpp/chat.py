"""A GGUF file's own chat template: what a chat is in tokens when it is served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.prompt.control import ControlTokens
from pilocal.prompt.probes import first_difference
from pilocal.prompt.render import Message, without_blank_systems
from pilocal.prompt.settle import DATE_STRING
from pilocal.prompt.tokens import prompt_tokens

TEMPLATE_FIELDS = ("tools",)
"""What of a request a chat template sees beside the messages."""


class ChatTemplate:
    """Turns chats into the tokens that the model is asked with."""

    def __init__(self, tokenizer: Tokenizer, gguf: Path, template: str | None = None) -> None:
        """Take a chat template, by default that of the file which the tokenizer is from.

        Raises ModelError when it has none, or it is broken.
        """
        from jinja2 import TemplateError

        from pilocal.prompt.bounded_jinja import chat_program

        template = template or tokenizer.chat_template
        if not template:
            raise no_chat_template(gguf)
        self._controls = ControlTokens(
            tokenizer.control_texts(), lambda text, control: tokenizer.tokens(text, special=control)
        )
        self._fields = {"eos_token": tokenizer.eos, "bos_token": tokenizer.bos, "add_generation_prompt": True}
        try:
            self._program = chat_program(template)
        except (TemplateError, ValueError, TypeError) as error:
            what, fix = f"its chat template is broken: {error}", "take another base, or give a chat_template"
            raise ModelError(gguf, what, fix=fix) from None

    def tokens(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
        """Return the tokens of a chat up to where the answer begins; `more` is what else the template may use.

        Control tokens are those that the template writes, never what a message says, as in training. Raises
        jinja2.TemplateError, ValueError or TypeError when the template does not take the messages.
        """
        (chat, fields), hidden = self._controls.hide((without_blank_systems(messages), more))
        text = self._program.render(messages=chat, date_string=DATE_STRING, **self._fields, **fields)
        return self._controls.encode(text, hidden)


def check_probes(
    gguf: Path, probes: Sequence[Mapping[str, Any]], template: str | None = None, where: Path | None = None
) -> None:
    """Raise ModelError unless a file makes the tokens of these chats that training made of them.

    They are written by `template`, by default the file's own. `where` is what the error names, by default the file.
    """
    with Model(gguf, vocabulary_only=True) as model:
        roles = first_difference(probes, ChatTemplate(model.tokenizer, gguf, template).tokens)
    if roles is not None:
        what = f"llama.cpp cuts a chat of {roles} into other tokens than the training does"
        raise ModelError(where or gguf, what, fix="export it again with this version, or take another base")


def check_texts(gguf: Path, template: str | None, tokenizer: Any, texts: Iterable[tuple[str, str]]) -> None:
    """Raise ModelError for the first of some texts of which a file makes other tokens than the training does.

    Each comes with where it is from, and is asked alone. ASCII text is cut alike always.
    """
    with Model(gguf, vocabulary_only=True) as model:
        cut = ChatTemplate(model.tokenizer, gguf, template).tokens

        def differs(text: str) -> bool:
            chat = [Message(role="user", content=text)]
            return not text.isascii() and cut(chat) != prompt_tokens(chat, tokenizer)

        for where, text in texts:
            if differs(text):
                got = next(filter(differs, text.split()), text[:80])
                what = "llama.cpp cuts this text into other tokens than the base's tokenizer does"
                raise ModelError(where, what, got=got, fix="leave it out, or take a base with another tokenizer")


def no_chat_template(gguf: Path) -> ModelError:
    """Return the error for a file that cannot be chatted with."""
    return ModelError(gguf, "the file has no chat template", fix="take an instruct model as base")
