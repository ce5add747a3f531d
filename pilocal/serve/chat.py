"""The model's own chat template and tokenizer: what a request is in tokens, before it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilocal.prompt.tokens import DATE_STRING
from pilocal.serve.refusal import Refusal

GIVEN = ("messages", "functions", "function_call", "tools", "tool_choice")
"""What of a request the chat template sees."""


class Tokenizer:
    """Counts as llama-cpp-python will; safe to use while the model answers."""

    def __init__(self, llama: Any) -> None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._llama = llama
        bos, eos = (llama._model.token_get_text(token) for token in (llama.token_bos(), llama.token_eos()))
        self._bos = bos if llama._model.add_bos_token() else ""
        template = llama.metadata["tokenizer.chat_template"]
        self._format = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)

    def chat(self, request: Mapping[str, Any]) -> int:
        """Return the tokens of a chat; raises Refusal when the chat template does not take it."""
        import jinja2

        try:
            given = {name: request.get(name) for name in GIVEN}
            text = self._format(**given, date_string=DATE_STRING).prompt
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            message = f"messages: the model's chat template refuses them: {error}"
            raise Refusal(400, message, param="messages") from None
        return len(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def text(self, prompt: str) -> int:
        """Return the tokens of a raw prompt."""
        return len(self._llama.tokenize(prompt.encode(), add_bos=True, special=True))

    def without_bos(self, prompt: str) -> str:
        """Return a raw prompt without the BOS that the model puts before it anyway."""
        return prompt.removeprefix(self._bos)
