"""A context: the keys and values of one or more sequences of tokens, and what a model computes from them."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import RunError
from pilocal.llamacpp.library import load_llama_cpp
from pilocal.llamacpp.model import Model

BATCH = 512
"""Tokens that are computed at once, llama.cpp's own choice."""

EMBEDDED = 128
"""Tokens that are computed at once for their embeddings: each of them takes a row of the vocabulary's size."""

MEASURED = 2
"""Single tokens that are computed to choose the number of threads."""

Entry = tuple[int, int, int, bool]
"""A token to compute: itself, its position, its sequence, and whether its logits are wanted."""


class _Batch:
    """llama.cpp's `llama_batch` of up to BATCH tokens, each of one sequence, in arrays that are filled at once."""

    def __init__(self) -> None:
        llama_cpp = load_llama_cpp()
        self._tokens, self._positions, self._sequences = (np.zeros(BATCH, dtype=np.int32) for _ in range(3))
        self._wanted, self._counts = np.zeros(BATCH, dtype=np.int8), np.ones(BATCH, dtype=np.int32)
        at, size = self._sequences.ctypes.data, self._sequences.itemsize
        self._places = (ctypes.POINTER(ctypes.c_int32) * BATCH)(
            *(ctypes.cast(at + size * i, ctypes.POINTER(ctypes.c_int32)) for i in range(BATCH))
        )

        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return array.ctypes.data_as(ctypes.POINTER(kind))

        self._batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=pointer(self._positions, ctypes.c_int32),
            n_seq_id=pointer(self._counts, ctypes.c_int32),
            seq_id=ctypes.cast(self._places, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=pointer(self._wanted, ctypes.c_int8),
        )

    def filled(self, entries: Sequence[Entry]) -> Any:
        """Return the `llama_batch` with these tokens."""
        count = len(entries)
        rows = np.array(entries, dtype=np.int32).reshape(count, 4)
        self._tokens[:count], self._positions[:count] = rows[:, 0], rows[:, 1]
        self._sequences[:count], self._wanted[:count] = rows[:, 2], rows[:, 3]
        self._batch.n_tokens = count
        return self._batch


class Context:
    """Room for the keys and values of a model, its adapter applied; a context manager."""

    def __init__(
        self,
        model: Model,
        tokens: int,
        *,
        sequences: int = 1,
        shared: bool = False,
        threads: int | None = None,
        embeddings: bool = False,
    ) -> None:
        """Make room for so many tokens in all; `threads` is one per core by default, for single tokens what is faster.

        Each sequence has an equal part of the room, unless it is `shared`. With `embeddings`, `decode` takes up to
        EMBEDDED tokens, all of them wanted. Raises RunError when there is not enough memory.
        """
        self._llama_cpp = llama_cpp = load_llama_cpp()
        self._model = model
        self.vocabulary_size = model.tokenizer.size
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens
        params.n_seq_max = sequences
        params.kv_unified = shared
        # As in llama-cpp-python's server. On a CPU, a kept prefix is read up to five times as fast without it.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_batch = params.n_ubatch = EMBEDDED if embeddings else BATCH
        if embeddings:
            params.embeddings, params.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
        params.n_threads = params.n_threads_batch = threads or os.cpu_count() or 1
        self._handle: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            fix = "free some, or ask for shorter prompts or fewer clients"
            raise RunError(model.path, f"llama.cpp has no memory for a context of {tokens} tokens", fix=fix)
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._batch = _Batch()
        if model.adapter:
            self.adapt(model.adapter)
        if threads is None:
            self._choose_threads(os.cpu_count() or 1)

    def _choose_threads(self, cores: int) -> None:
        """Compute single tokens on one thread if that is faster: in a small model, threads mostly wait for each other.

        They sleep while they wait: on a busy machine a thread that spins keeps the core from the one it waits for.
        """
        seconds = {}
        for threads in sorted({1, cores}):
            self._llama_cpp.llama_set_n_threads(self._handle, threads, cores)
            for _ in range(1 + MEASURED):  # the first of them counts for nothing: weights are read from the disk
                self.clear()
                began = time.perf_counter()
                self.decode([(0, 0, 0, True)])
                self._llama_cpp.llama_synchronize(self._handle)
                seconds[threads] = time.perf_counter() - began
        self.clear()
        self._llama_cpp.llama_set_n_threads(self._handle, min(seconds, key=lambda count: seconds[count]), cores)

    def decode(self, entries: Sequence[Entry]) -> None:
        """Compute up to BATCH tokens; raises RunError when llama.cpp fails."""
        code = self._llama_cpp.llama_decode(self._handle, self._batch.filled(entries))
        if code:
            fix = "ask for shorter prompts or fewer clients"
            raise RunError(self._model.path, "llama.cpp cannot compute a batch", got=code, fix=fix)

    def synchronize(self) -> None:
        """Wait until what was asked for is computed."""
        self._llama_cpp.llama_synchronize(self._handle)

    def logits(self, place: int) -> NDArray[np.float32]:
        """Return the logits (vocabulary,) of an entry of the last batch; valid until the next."""
        pointer = self._llama_cpp.llama_get_logits_ith(self._handle, place)
        return np.ctypeslib.as_array(pointer, (self.vocabulary_size,))

    def all_logits(self, count: int) -> NDArray[np.float32]:
        """Return the logits (count, vocabulary) of the entries of the last batch that wanted theirs, in their order.

        Valid until the next batch.
        """
        pointer = self._llama_cpp.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(pointer, (count, self.vocabulary_size))

    def embeddings(self, count: int, width: int) -> NDArray[np.float32]:
        """Return what the model makes of each token of the last batch, (count, width); valid until the next."""
        pointer = self._llama_cpp.llama_get_embeddings(self._handle)
        return np.ctypeslib.as_array(pointer, (count, width))

    def best(self, place: int) -> int:
        """Return the likeliest token after an entry of the last batch."""
        return int(self.logits(place).argmax())

    def adapt(self, adapter: Any | None, strength: float = 1.0) -> None:
        """Compute with an adapter of the model from now on, or without any; `strength` multiplies its updates.

        What was computed before stays. Raises RuntimeError when llama.cpp fails.
        """
        adapters = [] if adapter is None else [adapter]
        count = len(adapters)
        pointers = (self._llama_cpp.llama_adapter_lora_p_ctypes * count)(*adapters)
        scales = (ctypes.c_float * count)(*[strength] * count)
        if self._llama_cpp.llama_set_adapters_lora(self._handle, pointers, count, scales):
            raise RuntimeError("llama.cpp cannot set the adapter")

    @contextmanager
    def abortable(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Give up what is computed once `cancelled` says so, where llama.cpp computes on the CPU; `decode` raises."""
        callback = self._llama_cpp.ggml_abort_callback(lambda _: cancelled())
        self._llama_cpp.llama_set_abort_callback(self._handle, callback, None)
        try:
            yield
        finally:
            self._llama_cpp.llama_set_abort_callback(self._handle, self._llama_cpp.ggml_abort_callback(0), None)

    def clear(self) -> None:
        """Forget all sequences."""
        self._llama_cpp.llama_memory_clear(self._memory, True)

    def keep(self, sequence: int, count: int) -> bool:
        """Forget a sequence but for its first tokens; tell whether the model's memory can do that."""
        return bool(self._llama_cpp.llama_memory_seq_rm(self._memory, sequence, count, -1))

    def share(self, source: int, target: int, count: int) -> None:
        """Let one sequence begin with the first tokens of another, of which only one copy is kept."""
        self._llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, count)

    def sequence_bytes(self, sequence: int) -> int:
        """Return how many bytes llama.cpp itself counts for a sequence's keys and values."""
        return int(self._llama_cpp.llama_state_seq_get_size(self._handle, sequence))

    def close(self) -> None:
        """Free the context."""
        if self._handle:
            self._llama_cpp.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
