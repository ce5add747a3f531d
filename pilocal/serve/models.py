"""Every task's weights in memory: one base, an adapter for each task, and fused files beside it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError
from pilocal.prompt.tokens import DATE_STRING
from pilocal.run.shipped import Shipped
from pilocal.serve.job import JOB, Job
from pilocal.serve.weights import BASE

CLIENT_CLOSED_REQUEST = 499
"""The status, known from nginx, of a request whose client did not wait for the answer."""


def model_settings(gguf: Path, *, context: int, threads: int | None) -> Any:
    """Return llama-cpp-python's settings for a file; they depend on nothing but the arguments.

    Answers depend on the model and the request alone: the file's own chat template, no environment variables, and no
    penalties, since llama-cpp-python would otherwise apply a repetition penalty of 1.1 that OpenAI clients do not know.
    """
    from llama_cpp.server.settings import ModelSettings

    # model_construct() takes the defaults but, unlike the constructor, reads no environment variables.
    return ModelSettings.model_construct(
        model=str(gguf),
        model_alias=BASE,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1,  # all of them, where llama.cpp was built for a GPU
        use_mlock=False,
        logits_all=False,  # else context * vocabulary floats are kept, gigabytes for Llama 3
        last_n_tokens_size=0,  # the window of the penalties
        chat_format="chat_template.default",  # the file's own; by default some are swapped for built-in ones
        chat_template_kwargs={"date_string": DATE_STRING},  # as in training
        verbose=False,
    )


class Models:
    """The models as llama-cpp-python's routes ask for them: call it for the weights of the current job.

    Only one job at a time may generate. An adapter is switched by its pointer, within microseconds; the KV cache is
    emptied, for it holds what the adapter before made of the prompt. Within a task the cache stays, and with it the
    prefix that two prompts share. A fused file is a model of its own and keeps its own cache.
    """

    def __init__(self, base: Any, tasks: Sequence[Shipped], *, context: int, threads: int | None) -> None:
        """Load the tasks' files; `base` is the loaded base. Raises ModelError when llama.cpp refuses one."""
        self._base = base
        self._current = BASE
        self._names = (*(task.name for task in tasks), BASE)
        self._adapters = {task.name: self._load_adapter(task.folder / task.adapter) for task in tasks if task.adapter}
        self._fused: dict[str, Any] = {}
        for task in tasks:
            if task.fused is not None:
                with refusing(task.folder / task.fused):
                    self._fused[task.name] = load_model(task.folder / task.fused, context=context, threads=threads)
        for llama in (base, *self._fused.values()):
            _watch(llama)

    @property
    def base(self) -> Any:
        """The base; its tokenizer is every task's."""
        return self._base

    def __iter__(self) -> Iterator[str]:
        """Go through the names, the bare base last."""
        return iter(self._names)

    def __call__(self, model: str | None = None) -> Any:
        """Return the model of the current job, its adapter set; outside a job the base, for its tokenizer."""
        job = JOB.get(None)
        return self._base if job is None else self._switch(job.model)

    def _switch(self, name: str) -> Any:
        if name in self._fused:
            return self._fused[name]
        if name != self._current:
            self._current = ""  # should the next line fail
            self._set(None if name == BASE else self._adapters[name])
            _forget(self._base)
            self._current = name
        return self._base

    def _set(self, adapter: Any) -> None:
        import llama_cpp

        adapters = [] if adapter is None else [adapter]
        count = len(adapters)
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*adapters)
        scales = (ctypes.c_float * count)(*[1.0] * count)
        if llama_cpp.llama_set_adapters_lora(self._base.ctx, pointers, count, scales):
            raise RuntimeError("llama.cpp cannot set the adapter")

    def _load_adapter(self, path: Path) -> Any:
        import llama_cpp

        pointer = llama_cpp.llama_adapter_lora_init(self._base.model, str(path).encode())
        if not pointer:
            fix = "copy it again, or run `pilocal export`"
            raise ModelError(path, "llama.cpp cannot load it: it does not fit the base", fix=fix)
        return pointer


@contextmanager
def refusing(gguf: Path) -> Iterator[None]:
    """Turn what llama-cpp-python raises when it cannot load a file into a ModelError."""
    from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerNotFoundException

    try:
        yield
    except LlamaChatCompletionHandlerNotFoundException:
        raise ModelError(gguf, "the file has no chat template", fix="take an instruct model as base") from None
    except (ValueError, RuntimeError) as error:
        fix = "export it again, or ask for a smaller context"
        raise ModelError(gguf, f"llama.cpp cannot load it: {error}", fix=fix) from None


def load_model(gguf: Path, *, context: int, threads: int | None) -> Any:
    """Load a file."""
    from llama_cpp.server.model import LlamaProxy

    return LlamaProxy.load_llama_from_model_settings(model_settings(gguf, context=context, threads=threads))


def _forget(llama: Any) -> None:
    llama.reset()
    llama._ctx.kv_cache_clear()


def _watch(llama: Any) -> None:
    """Have a model tell the current job of every token, and stop when the job is cancelled.

    Between two tokens the answer just ends. Before the first there is nothing that could end, so HTTPException is
    raised, the one exception that llama-cpp-python's routes let pass without a trace.
    """
    generate = llama.generate

    def watched(*args: Any, **kwargs: Any) -> Iterator[int]:
        import llama_cpp
        from fastapi import HTTPException

        job = JOB.get()
        tokens = generate(*args, **kwargs)
        try:
            with _abortable(llama, job):
                token = next(tokens, None)
        except RuntimeError:
            _forget(llama)
            if job.cancelled.is_set():
                raise HTTPException(CLIENT_CLOSED_REQUEST) from None
            raise
        while token is not None and not job.cancelled.is_set():
            job.come(token, last=llama_cpp.llama_vocab_is_eog(llama._model.vocab, token))
            yield token
            token = next(tokens, None)

    llama.generate = watched


@contextmanager
def _abortable(llama: Any, job: Job) -> Iterator[None]:
    """Let a long prompt be given up amid its evaluation, where llama.cpp computes on the CPU."""
    import llama_cpp

    callback = llama_cpp.ggml_abort_callback(lambda _: job.cancelled.is_set())
    llama_cpp.llama_set_abort_callback(llama.ctx, callback, None)
    try:
        yield
    finally:
        llama_cpp.llama_set_abort_callback(llama.ctx, llama_cpp.ggml_abort_callback(0), None)
