"""A GGUF file, and an adapter for it, in llama.cpp's memory: the one way to load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pilocal.llamacpp.library import collected_errors, load_llama_cpp, metadata, refusal
from pilocal.llamacpp.tokenizer import Tokenizer


class Model:
    """Weights for any number of contexts; a context manager, to be left after them."""

    def __init__(self, gguf: Path, adapter: Path | None = None, *, vocabulary_only: bool = False) -> None:
        """Load the files; with `vocabulary_only` the weights stay on disk, and only `tokenizer` is of use.

        Raises ModelError when llama.cpp refuses a file.
        """
        llama_cpp = load_llama_cpp()
        self.path = gguf
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1  # all of them, where llama.cpp was built for a GPU
        params.vocab_only = vocabulary_only
        with collected_errors() as errors:
            self.handle: Any = llama_cpp.llama_model_load_from_file(bytes(gguf), params)
        if not self.handle:
            raise refusal(gguf, errors)
        self.adapter: Any = None
        try:
            if adapter is not None:
                self.adapter = load_adapter(self.handle, adapter)
            self.tokenizer = Tokenizer(self.handle)
        except BaseException:
            self.close()
            raise

    @property
    def kv_bytes(self) -> int:
        """How many bytes of keys and values a token takes: layers x heads x widths of both x 2, for float16."""
        llama_cpp = load_llama_cpp()
        heads = llama_cpp.llama_model_n_head_kv(self.handle)
        usual = llama_cpp.llama_model_n_embd(self.handle) // llama_cpp.llama_model_n_head(self.handle)
        widths = sum(int(self._number(f"attention.{part}_length") or usual) for part in ("key", "value"))
        return int(llama_cpp.llama_model_n_layer(self.handle) * heads * widths * 2)

    @property
    def width(self) -> int:
        """How many numbers the model makes of a token."""
        return int(load_llama_cpp().llama_model_n_embd_out(self.handle))

    def _number(self, key: str) -> str:
        """Return a value of the file's metadata below the architecture's name; empty where there is none."""
        return metadata(self.handle, f"{metadata(self.handle, 'general.architecture')}.{key}")

    def close(self) -> None:
        """Free the weights, and the adapter with them."""
        if self.handle:
            load_llama_cpp().llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_adapter(model: Any, path: Path) -> Any:
    """Return an adapter for a loaded model, llama.cpp's `llama_model *`, which frees it with itself.

    Raises ModelError when llama.cpp refuses the file, or it does not fit the model.
    """
    with collected_errors() as errors:
        adapter = load_llama_cpp().llama_adapter_lora_init(model, bytes(path))
    if not adapter:
        raise refusal(path, errors)
    return adapter
