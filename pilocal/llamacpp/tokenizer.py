"""The tokenizer of a GGUF file, which is all that a server of it has; the weights stay on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError


class GgufTokenizer:
    """Texts to tokens as llama.cpp makes them; to be closed."""

    def __init__(self, gguf: Path) -> None:
        """Read the file's vocabulary; raises ModelError when llama.cpp refuses it."""
        import llama_cpp

        silence()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model: Any = llama_cpp.llama_model_load_from_file(bytes(gguf), params)
        if not self._model:
            raise ModelError(gguf, "llama.cpp refuses the file", fix="`pilocal export` makes it again")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts BOS before a text by itself."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_get_add_bos(self._vocabulary))

    @property
    def bos(self) -> str:
        """BOS as text."""
        import llama_cpp

        return self._text(llama_cpp.llama_vocab_bos(self._vocabulary))

    @property
    def eos(self) -> str:
        """EOS as text."""
        import llama_cpp

        return self._text(llama_cpp.llama_vocab_eos(self._vocabulary))

    @property
    def chat_template(self) -> str:
        """The Jinja chat template; empty where the file has none."""
        import llama_cpp

        found = llama_cpp.llama_model_chat_template(self._model, None)
        return found.decode() if found else ""

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens without BOS; with `special`, marks such as <|eot_id|> are one token."""
        import llama_cpp

        raw = text.encode()
        room = len(raw) + 1  # a token has a byte at least
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), found, room, False, special)
        return list(found[:count])

    def _text(self, token: int) -> str:
        import llama_cpp

        # llama.cpp has no such token: -1.
        text = llama_cpp.llama_vocab_get_text(self._vocabulary, token) if token >= 0 else b""
        return str(text.decode())

    def close(self) -> None:
        """Free it."""
        import llama_cpp

        llama_cpp.llama_model_free(self._model)


def silence() -> None:
    """Keep llama.cpp's log off stderr; llama-cpp-python, when silent, takes its warnings for errors."""
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
