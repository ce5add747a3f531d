"""A GGUF file, and an adapter beside it, in llama.cpp's memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.llamacpp.tokenizer import silence


class Model:
    """Weights for any number of contexts; to be closed after them."""

    def __init__(self, gguf: Path, adapter: Path | None = None) -> None:
        """Load the files; raises ModelError when llama.cpp refuses one."""
        import llama_cpp

        silence()
        self.path = gguf
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1  # all of them, where llama.cpp was built for a GPU
        self.handle: Any = llama_cpp.llama_model_load_from_file(bytes(gguf), params)
        if not self.handle:
            raise ModelError(gguf, "llama.cpp refuses the file", fix="`pilocal export` makes it again")
        self.adapter: Any = None
        if adapter is not None:
            self.adapter = llama_cpp.llama_adapter_lora_init(self.handle, bytes(adapter))
            if not self.adapter:
                self.close()
                raise ModelError(adapter, "llama.cpp refuses the adapter", fix="`pilocal export` makes it again")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocabulary_size: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)

    def is_end(self, token: int) -> bool:
        """Tell whether a token ends an answer."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    @property
    def kv_bytes(self) -> int:
        """How many bytes of keys and values a token takes: layers x heads x widths of both x 2, for float16."""
        import llama_cpp

        heads = llama_cpp.llama_model_n_head_kv(self.handle)
        usual = llama_cpp.llama_model_n_embd(self.handle) // llama_cpp.llama_model_n_head(self.handle)
        widths = sum(int(self._number(f"attention.{part}_length") or usual) for part in ("key", "value"))
        return int(llama_cpp.llama_model_n_layer(self.handle) * heads * widths * 2)

    def _number(self, key: str) -> str:
        """Return a value of the file's metadata below the architecture's name; empty where there is none."""
        return self._metadata(f"{self._metadata('general.architecture')}.{key}")

    def _metadata(self, key: str) -> str:
        import llama_cpp

        value = ctypes.create_string_buffer(256)
        found = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), value, len(value))
        return value.value.decode() if found >= 0 else ""

    def close(self) -> None:
        """Free the weights."""
        import llama_cpp

        llama_cpp.llama_model_free(self.handle)
