"""The tokenizer inside a GGUF file, which is all that a server of the file has."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pilocal.llamacpp.library import load_llama_cpp, metadata
from pilocal.prompt.control import NFC_KEY

KEPT = 2**14
"""Tokens whose texts are remembered."""


class Tokenizer:
    """Turns texts into tokens as llama.cpp does; usable while its model is loaded, from several threads at once."""

    def __init__(self, model: Any) -> None:
        """Read the vocabulary of a loaded model, llama.cpp's `llama_model *`."""
        self._llama_cpp = load_llama_cpp()
        self._model = model
        self._vocabulary = self._llama_cpp.llama_model_get_vocab(model)
        self._nfc = metadata(model, NFC_KEY) == "true"
        self.size: int = self._llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        # Each call of llama.cpp lets another thread go on in Python, and the engine then waits for that.
        self._piece, self._is_end = lru_cache(KEPT)(self._read_piece), lru_cache(KEPT)(self._read_is_end)

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts BOS before a text by itself."""
        return bool(self._llama_cpp.llama_vocab_get_add_bos(self._vocabulary))

    @property
    def bos(self) -> str:
        """BOS as text; empty where there is none."""
        return self._text(self._llama_cpp.llama_vocab_bos(self._vocabulary))

    @property
    def eos(self) -> str:
        """EOS as text; empty where there is none."""
        return self._text(self._llama_cpp.llama_vocab_eos(self._vocabulary))

    @property
    def chat_template(self) -> str:
        """The Jinja chat template; empty where the file has none."""
        found = self._llama_cpp.llama_model_chat_template(self._model, None)
        return found.decode() if found else ""

    def control_texts(self) -> list[str]:
        """Return the texts of the tokens that `tokens` finds with `special` alone."""
        kinds = self._llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | self._llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes = self._llama_cpp.llama_vocab_get_attr
        return [self._text(token) for token in range(self.size) if attributes(self._vocabulary, token) & kinds]

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends an answer."""
        return self._is_end(token)

    def tokens(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """Return a text's tokens.

        With `special`, marks such as <|eot_id|> are one token. With `bos`, BOS comes first if the model wants one.
        """
        raw = (unicodedata.normalize("NFC", text) if self._nfc else text).encode()
        room = len(raw) + 2  # a token has at least one byte; BOS and a leading space may come on top
        found = (self._llama_cpp.llama_token * room)()
        count = self._llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), found, room, bos, special)
        return list(found[:count])

    def text(self, tokens: Sequence[int]) -> bytes:
        """Return the text of an answer's tokens, as it is served: UTF-8, unless they end inside a character."""
        return b"".join(map(self._piece, tokens))

    def _read_is_end(self, token: int) -> bool:
        return bool(self._llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def _read_piece(self, token: int) -> bytes:
        room = 256
        while True:
            found = ctypes.create_string_buffer(room)
            size = self._llama_cpp.llama_token_to_piece(self._vocabulary, token, found, room, 0, False)
            if size >= 0:
                return found.raw[:size]
            room = -size

    def _text(self, token: int) -> str:
        # llama.cpp has no such token: -1.
        text = self._llama_cpp.llama_vocab_get_text(self._vocabulary, token) if token >= 0 else b""
        return str(text.decode())
