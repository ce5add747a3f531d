"""`pilocal serve`: llama-cpp-python's own FastAPI app on one GGUF."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from pilocal.errors import InputError, ModelError


def serve(gguf: Path, *, alias: str, host: str, port: int, context: int, threads: int | None) -> None:
    """Answer OpenAI-compatible requests under http://host:port/v1 until the process is interrupted.

    `alias` is the model's name in /v1/models, `context` the longest prompt and answer together in tokens, `threads`
    llama.cpp's (None: half of the cores for an answer, all of them for a prompt). The port is taken before the model
    is loaded, and requests that come meanwhile wait. Raises InputError when the port is not to be had, ModelError when
    llama.cpp cannot load the file, and KeyboardInterrupt once an interrupted server has shut down.
    """
    import uvicorn

    with _listen(host, port) as listener:
        app = make_app(gguf, alias=alias, context=context, threads=threads)
        uvicorn.Server(uvicorn.Config(app, access_log=False)).run(sockets=[listener])


def make_app(gguf: Path, *, alias: str, context: int, threads: int | None) -> Any:
    """Load the GGUF and return the ASGI app; see `serve`.

    Answers depend on the model and the request alone: the file's own chat template, no environment variables, and no
    penalties, since llama-cpp-python would otherwise apply a repetition penalty of 1.1 that OpenAI clients do not know.
    """
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    if not gguf.is_file():
        raise ModelError(gguf, "no such file", fix="`pilocal export` makes it")
    if "CONFIG_FILE" in os.environ:
        fix = "unset it"
        raise InputError("CONFIG_FILE", "llama-cpp-python would take its settings from this variable", fix=fix)
    # model_construct() takes the defaults but, unlike the constructor, reads no environment variables.
    model = ModelSettings.model_construct(
        model=str(gguf),
        model_alias=alias,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1,  # all of them, where llama.cpp was built for a GPU
        use_mlock=False,
        logits_all=False,  # else context * vocabulary floats are kept, gigabytes for Llama 3
        last_n_tokens_size=0,  # the window of the penalties
        chat_format="chat_template.default",  # the file's own; by default some are swapped for built-in ones
        verbose=False,
    )
    server = ServerSettings.model_construct(interrupt_requests=False)
    try:
        return create_app(server_settings=server, model_settings=[model])
    except (ValueError, RuntimeError) as error:
        fix = "export it again, or ask for a smaller context"
        raise ModelError(gguf, f"llama.cpp cannot load it: {error}", fix=fix) from None


def _listen(host: str, port: int) -> socket.socket:
    fix = "choose another with --port or --host"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0]
        raise InputError(f"{host}:{port}", f"cannot listen there: {reason}", fix=fix) from None
