"""Many clients on one model: continuous batching in llama.cpp, as its server does it, with a clock on every request."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pilocal.errors import RunError
from pilocal.llamacpp.model import Model

BATCH = 512
"""Tokens that are computed at once, llama.cpp's own choice."""

STEP = 256
"""llama.cpp's buffers of keys and values are multiples of so many tokens."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request got, and when."""

    tokens: tuple[int, ...]
    """The answer without its end token."""
    ttft: float
    """Seconds from the request to the first token."""
    total: float
    """Seconds from the request to the last."""


@dataclass(slots=True)
class _Slot:
    """A client's request in work."""

    number: int
    prompt: Sequence[int]
    began: float
    computed: int
    """Tokens of prompt and answer whose keys and values are there."""
    answer: list[int] = field(default_factory=list)
    first: float = 0.0


class BatchEngine:
    """A context in which `clients` requests are answered at once; each client asks again once it has its answer.

    Every step computes one token for each answer in work, and fills up with the prompts that wait. With a `prefix`,
    which all prompts must begin with, its keys and values are computed once and shared by all; the context is one
    buffer then. Without one every client has a buffer of its own, and no request sees what another has left.
    """

    def __init__(
        self, model: Model, *, clients: int, longest: int, prefix: Sequence[int] = (), threads: int | None = None
    ) -> None:
        """Make the context; `longest` is a prompt with its answer, in tokens, `threads` all cores when left out.

        Raises RunError when llama.cpp has not the memory.
        """
        import llama_cpp

        self._model = model
        self._prefix = list(prefix)
        self._clients = clients
        self.peak_tokens = 0
        """The most tokens whose keys and values `answer` kept at once; a shared prefix counts once."""
        params = llama_cpp.llama_context_default_params()
        own = longest - len(self._prefix)
        # A client's own buffer is whole steps long: llama.cpp would round the context down, not up.
        steps = math.ceil(longest / STEP) * STEP
        params.n_ctx = (len(self._prefix) + clients * own) if self._prefix else clients * steps
        params.n_seq_max = clients + bool(self._prefix)
        params.kv_unified = bool(self._prefix)
        # As llama-cpp-python's server has it. On a CPU it reads a kept prefix up to five times as fast without.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads or os.cpu_count() or 1
        self._context: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            fix = "ask for fewer clients"
            raise RunError(model.path, f"llama.cpp has no memory for a context of {params.n_ctx} tokens", fix=fix)
        if model.adapter:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(model.adapter)
            llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        for begin in range(0, len(self._prefix), BATCH):
            part = self._prefix[begin : begin + BATCH]
            self._decode([(token, begin + i, clients, False) for i, token in enumerate(part)])

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        done: Callable[[int], object] = lambda count: None,
    ) -> tuple[list[Answered], float]:
        """Answer the prompts greedily; return what each got, in order, and the seconds that all of them took.

        `done` is told how many have their answer. Raises RunError when llama.cpp fails.
        """
        waiting = deque(enumerate(prompts))
        slots: list[_Slot | None] = [None] * self._clients
        answered: dict[int, Answered] = {}
        self.peak_tokens = 0
        began = time.perf_counter()
        while waiting or any(slots):
            for sequence, slot in enumerate(slots):
                if slot is None and waiting:
                    slots[sequence] = self._start(sequence, *waiting.popleft())
            for sequence, token in self._step(slots):
                slot = slots[sequence]
                assert slot is not None
                now = time.perf_counter()
                slot.first = slot.first or now
                ended = self._model.is_end(token)
                if not ended:
                    slot.answer.append(token)
                if ended or len(slot.answer) == max_tokens:
                    answered[slot.number] = Answered(tuple(slot.answer), slot.first - slot.began, now - slot.began)
                    slots[sequence] = None
                    done(len(answered))
        return [answered[number] for number in range(len(prompts))], time.perf_counter() - began

    def sequence_bytes(self, sequence: int = 0) -> int:
        """Return how many bytes llama.cpp itself counts for the keys and values of a client's last request."""
        import llama_cpp

        return int(llama_cpp.llama_state_seq_get_size(self._context, sequence))

    def _start(self, sequence: int, number: int, prompt: Sequence[int]) -> _Slot:
        import llama_cpp

        began = time.perf_counter()
        shared = len(self._prefix)
        if list(prompt[:shared]) != self._prefix or len(prompt) == shared:
            raise ValueError(f"prompt {number} does not go on after the prefix")
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        if shared:
            llama_cpp.llama_memory_seq_cp(self._memory, self._clients, sequence, 0, shared)
        return _Slot(number, prompt, began, shared)

    def _step(self, slots: Sequence[_Slot | None]) -> list[tuple[int, int]]:
        """Compute one batch; return the next token of every sequence that has one now."""
        entries: list[tuple[int, int, int, bool]] = []
        wanted: list[tuple[int, int]] = []
        active = [(sequence, slot) for sequence, slot in enumerate(slots) if slot is not None]
        # Answers go first, so that nobody who reads one waits for another's prompt; then the prompts as they came.
        active.sort(key=lambda each: (not each[1].answer, each[1].began))
        for sequence, slot in active:
            left = [slot.answer[-1]] if slot.answer else slot.prompt[slot.computed :]
            part = left[: BATCH - len(entries)]
            for i, token in enumerate(part):
                last = i == len(left) - 1
                if last:
                    wanted.append((sequence, len(entries)))
                entries.append((token, slot.computed + i, sequence, last))
            slot.computed += len(part)
        self._decode(entries)
        kept = sum(slot.computed - len(self._prefix) for _, slot in active) + len(self._prefix)
        self.peak_tokens = max(self.peak_tokens, kept)
        return [(sequence, self._best(place)) for sequence, place in wanted]

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, whether its logits are wanted)."""
        import llama_cpp

        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RunError(self._model.path, "llama.cpp cannot compute a batch", got=code, fix="ask for fewer clients")

    def _best(self, place: int) -> int:
        import llama_cpp

        logits = llama_cpp.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._model.vocabulary_size,)).argmax())

    def close(self) -> None:
        """Free the context."""
        import llama_cpp

        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
