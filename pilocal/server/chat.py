"""The model's own chat template and tokenizer: what a request is in tokens, before it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilocal.llamacpp.chat import TEMPLATE_FIELDS, ChatTemplate
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.server.refusal import Refusal
from pilocal.server.tool_family import family_of


class PromptTokens:
    """Cuts prompts into tokens as the training did; safe to use while the model answers."""

    def __init__(self, tokenizer: Tokenizer, gguf: Path, template: str | None = None) -> None:
        """Take the tokenizer of a file, and a chat template, by default its own; raises ModelError when it has none."""
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos if tokenizer.adds_bos else ""
        self._chat_template = ChatTemplate(tokenizer, gguf, template)
        self.family = family_of(template or tokenizer.chat_template)
        """How the model writes calls of functions, by its chat template."""

    def chat(self, request: Mapping[str, Any]) -> list[int]:
        """Return the tokens of a chat; raises Refusal when the chat template does not accept it."""
        import jinja2

        try:
            fields = {name: request.get(name) for name in TEMPLATE_FIELDS}
            return self._chat_template.tokens(request["messages"], **fields)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            message = f"messages: the model's chat template refuses them: {error}"
            raise Refusal(400, message, param="messages") from None

    def text(self, prompt: str) -> list[int]:
        """Return the tokens of a raw prompt."""
        return self._tokenizer.tokens(prompt, special=True, bos=True)

    def without_bos(self, prompt: str) -> str:
        """Return a raw prompt without the BOS that the model puts before it anyway."""
        return prompt.removeprefix(self._bos)
