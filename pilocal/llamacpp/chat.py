"""A GGUF file's own chat template, applied as llama-cpp-python's server applies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pilocal.errors import ModelError
from pilocal.llamacpp.library import load_llama_cpp
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.prompt.tokens import DATE_STRING

if TYPE_CHECKING:
    from llama_cpp import ChatCompletionRequestMessage


class ChatTemplate:
    """Turns chats into the tokens that the model is asked with."""

    def __init__(self, tokenizer: Tokenizer, gguf: Path) -> None:
        """Take the chat template of the file that the tokenizer is from; raises ModelError when it has none."""
        load_llama_cpp()
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = tokenizer.chat_template
        if not template:
            raise no_chat_template(gguf)
        self._tokenizer = tokenizer
        self._format = Jinja2ChatFormatter(template=template, eos_token=tokenizer.eos, bos_token=tokenizer.bos)

    def tokens(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> list[int]:
        """Return the tokens of a chat up to where the answer begins; `more` is what else the template may use.

        Raises jinja2.TemplateError, ValueError or TypeError when the template does not take the messages.
        """
        chat = cast("list[ChatCompletionRequestMessage]", list(messages))
        text = self._format(messages=chat, date_string=DATE_STRING, **more).prompt
        return self._tokenizer.tokens(text, special=True)


def no_chat_template(gguf: Path) -> ModelError:
    """Return the error for a file that cannot be chatted with."""
    return ModelError(gguf, "the file has no chat template", fix="take an instruct model as base")
