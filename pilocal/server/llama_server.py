"""llama-cpp-python's server: its models, its app and its request types, and all of it that is private.

The only file outside pilocal/llamacpp/ that imports llama_cpp. `app`, `models` and `request` each need a part of that
server, and `app` imports the other two, so the parts are gathered below all three. Written for llama-cpp-python 0.3: a
test fails for another minor version, whose server is to be read before the test is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pilocal.errors import InputError
from pilocal.llamacpp.chat import TEMPLATE_FIELDS, ChatTemplate, no_chat_template
from pilocal.llamacpp.library import collected_errors, load_llama_cpp, refusal
from pilocal.llamacpp.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama_cpp.server.model import LlamaProxy


def load_llama(gguf: Path, *, context: int, threads: int | None) -> Any:
    """Load a file as the `Llama` that the server's routes call; raises ModelError when llama.cpp refuses it."""
    load_llama_cpp()
    from llama_cpp.server.model import LlamaProxy

    with _refusing(gguf):
        llama = LlamaProxy.load_llama_from_model_settings(_settings(gguf, context=context, threads=threads))
    return _with_chats(llama, gguf)


def make_llama_app(gguf: Path, template: str | None = None, *, context: int, threads: int | None) -> tuple[Any, Any]:
    """Return llama-cpp-python's FastAPI app and the loaded `Llama` of a file.

    Chats are written by `template`, by default the file's own. Raises InputError when an environment variable would
    change its settings, ModelError when llama.cpp refuses the file.
    """
    if "CONFIG_FILE" in os.environ:
        fix = "unset it"
        raise InputError("CONFIG_FILE", "llama-cpp-python would take its settings from this variable", fix=fix)
    load_llama_cpp()
    from llama_cpp.server import app as llama_app
    from llama_cpp.server.settings import ServerSettings

    settings = _settings(gguf, template, context=context, threads=threads)
    with _refusing(gguf):
        app = llama_app.create_app(
            server_settings=ServerSettings.model_construct(interrupt_requests=False), model_settings=[settings]
        )
    proxy: Any = llama_app._llama_proxy
    app.state.proxy = proxy  # else the model would be freed with it
    return app, _with_chats(proxy(), gguf, template)


def answer_with(models: Callable[[str | None], Any]) -> None:
    """Have the app's routes ask `models` for the `Llama` that answers a request."""
    from llama_cpp.server import app as llama_app

    llama_app._llama_proxy = cast("LlamaProxy", models)


def validate_request(kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given of a request, checked against a type of llama-cpp-python's such as "TokenizeInputRequest".

    Raises pydantic.ValidationError.
    """
    from llama_cpp.server import types

    checked: dict[str, Any] = getattr(types, kind).model_validate(request).model_dump(exclude_unset=True)
    return checked


def _with_chats(llama: Any, gguf: Path, template: str | None = None) -> Any:
    """Make a `Llama` cut chats into tokens as training did; return it."""
    from llama_cpp.llama_chat_format import ChatFormatterResponse, chat_formatter_to_chat_completion_handler

    chats = ChatTemplate(Tokenizer(llama.model), gguf, template)
    answer = chat_formatter_to_chat_completion_handler(lambda **_: ChatFormatterResponse(prompt="", added_special=True))

    def handler(**request: Any) -> Any:
        fields = {name: request.get(name) for name in TEMPLATE_FIELDS}
        request["llama"] = _Asked(request["llama"], chats.tokens(request["messages"], **fields))
        return answer(**request)

    llama.chat_handler = handler
    return llama


class _Asked:
    """A `Llama` that is asked a chat whose tokens are known."""

    def __init__(self, llama: Any, tokens: list[int]) -> None:
        self._llama = llama
        self._tokens = tokens

    def tokenize(self, *_: Any, **__: Any) -> list[int]:
        return self._tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)


@contextmanager
def _refusing(gguf: Path) -> Iterator[None]:
    """Turn what llama-cpp-python raises when it cannot load a file into a ModelError."""
    from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerNotFoundException

    try:
        with collected_errors() as errors:
            yield
    except LlamaChatCompletionHandlerNotFoundException:
        raise no_chat_template(gguf) from None
    except (ValueError, RuntimeError) as error:
        raise refusal(gguf, [*errors, str(error)], fix="export it again, or ask for a smaller context") from None


def _settings(gguf: Path, template: str | None = None, *, context: int, threads: int | None) -> Any:
    """Return llama-cpp-python's settings for a file; they depend on nothing but the arguments.

    Answers depend on the model and the request alone: a chat template that is known, no environment variables, and no
    penalties, since llama-cpp-python would otherwise apply a repetition penalty of 1.1 that OpenAI clients do not know.
    """
    from llama_cpp.server.settings import ModelSettings

    # model_construct() takes the defaults but, unlike the constructor, reads no environment variables.
    return ModelSettings.model_construct(
        model=str(gguf),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1,  # all of them, where llama.cpp was built for a GPU
        use_mlock=False,
        logits_all=False,  # else context * vocabulary floats are kept, gigabytes for Llama 3
        last_n_tokens_size=0,  # the window of the penalties
        # The file's own, where some are swapped for built-in ones by default; it may have none if another is given.
        chat_format="chatml" if template else "chat_template.default",
        verbose=False,
    )
