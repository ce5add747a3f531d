"""Every task's weights in memory: one base, an adapter for each task, and fused files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pilocal.llamacpp.context import abortable, apply_adapter, clear
from pilocal.llamacpp.model import load_adapter
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.run_folder.shipped import Shipped
from pilocal.server.job import CURRENT_JOB
from pilocal.server.llama_server import load_llama
from pilocal.server.weights import BASE

CLIENT_CLOSED_REQUEST = 499
"""The status, known from nginx, of a request whose client did not wait for the answer."""


class Models:
    """The models as llama-cpp-python's routes ask for them: call it for the weights of the current job.

    Only one job at a time may generate. Switching adapters, or the strength of one, takes microseconds, as only a
    pointer changes. The KV cache is then cleared, since other weights computed it. With the same adapter at the same
    strength the cache stays, and with it the prefix that two prompts share. A fused file is a model of its own and
    keeps its own cache.
    """

    def __init__(self, base: Any, tasks: Sequence[Shipped], *, context: int, threads: int | None) -> None:
        """Load the tasks' files; `base` is the loaded base. Raises ModelError when llama.cpp refuses one."""
        self._base = base
        self._current: tuple[str, float] | None = (BASE, 1.0)
        self._names = (*(task.name for task in tasks), BASE)
        self._adapters = {task.name: load_adapter(base.model, task.adapter_path) for task in tasks if task.adapter_path}
        self._fused = {
            task.name: load_llama(task.folder / task.fused, context=context, threads=threads)
            for task in tasks
            if task.fused
        }
        for llama in (base, *self._fused.values()):
            _report_tokens(llama)

    @property
    def base(self) -> Any:
        """The base; its tokenizer is every task's."""
        return self._base

    def __iter__(self) -> Iterator[str]:
        """Go through the names, the bare base last."""
        return iter(self._names)

    def __call__(self, model: str | None = None) -> Any:
        """Return the model of the current job, its adapter set; outside a job the base, for its tokenizer."""
        job = CURRENT_JOB.get(None)
        return self._base if job is None else self._switch(job.model, job.strength)

    def _switch(self, name: str, strength: float) -> Any:
        if name in self._fused:
            return self._fused[name]
        wanted = (name, strength)
        if wanted != self._current:
            self._current = None  # in case the next line fails
            apply_adapter(self._base.ctx, None if name == BASE else self._adapters[name], strength)
            _clear_cache(self._base)
            self._current = wanted
        return self._base


def _clear_cache(llama: Any) -> None:
    llama.reset()
    clear(llama.ctx)


def _report_tokens(llama: Any) -> None:
    """Make a model report every token to the current job, and stop when the job is cancelled.

    Between two tokens the answer just ends. Before the first there is nothing that could end, so HTTPException is
    raised, the one exception that llama-cpp-python's routes let pass without a trace.
    """
    generate = llama.generate
    tokenizer = Tokenizer(llama.model)

    def reporting(*args: Any, **kwargs: Any) -> Iterator[int]:
        from fastapi import HTTPException

        job = CURRENT_JOB.get()
        tokens = generate(*args, **kwargs)
        try:
            with abortable(llama.ctx, job.cancelled):
                token = next(tokens, None)
        except RuntimeError:
            _clear_cache(llama)
            if job.cancelled.is_set():
                raise HTTPException(CLIENT_CLOSED_REQUEST) from None
            raise
        while token is not None and not job.cancelled.is_set():
            job.add(token, last=tokenizer.is_end(token))
            yield token
            token = next(tokens, None)

    llama.generate = reporting
