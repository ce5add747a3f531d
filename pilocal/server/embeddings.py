"""Embeddings of texts from the bare base: a request for them, and how they are made and told."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from pilocal.llamacpp.embedder import Embedder
from pilocal.llamacpp.model import Model
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.server.refusal import Refusal
from pilocal.server.request import NOT_DONE, parse_body

EMBEDDING = "embedding"
"""The arm of a request for embeddings."""
FIELDS = ("model", "input", "encoding_format", "dimensions", "user")
FORMATS = ("float", "base64")
MOST_INPUTS, MOST_TOKENS = 2048, 300_000
"""Texts of a request, and tokens of them all, as OpenAI has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to be embedded, checked."""

    said: Any
    """The input as the client sent it."""
    texts: Sequence[Sequence[int]]
    """The tokens of each text."""
    format: str = "float"

    @property
    def tokens(self) -> int:
        """How many tokens the texts have together."""
        return sum(map(len, self.texts))


def read_embedding_request(
    body: bytes, tokenizer: Tokenizer, *, names: Sequence[str], context: int, width: int
) -> EmbeddingRequest:
    """Return the checked request; raises Refusal with what is wrong, before anything is computed.

    `names` are those of the server's tasks and base. A text has at most `context` tokens, an embedding `width` numbers.
    """
    request = parse_body(body)
    for name in request:
        if name not in FIELDS:
            raise _refused(name, NOT_DONE, "unsupported_parameter")
    _check_model(request.get("model"), names)
    dimensions, form = request.get("dimensions", width), request.get("encoding_format", "float")
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions != width:
        raise _refused("dimensions", f"the base's embeddings have {width}.", "unsupported_value")
    if form not in FORMATS:
        raise _refused("encoding_format", f"must be one of {', '.join(FORMATS)}.")
    if not isinstance(request.get("user", ""), str):
        raise _refused("user", "must be text.", "invalid_type")
    texts = _texts(request.get("input"), tokenizer)
    _check_lengths(texts, context)
    return EmbeddingRequest(said=request["input"], texts=[tokens for _, tokens in texts], format=form)


def _refused(name: str, problem: str, code: str = "invalid_value") -> Refusal:
    return Refusal(400, f"{name}: {problem}", param=name, code=code)


def _check_model(name: Any, names: Sequence[str]) -> None:
    """Raise Refusal unless the base is asked: an adapter was trained to answer, not to compare texts."""
    if name is not None and name not in names:
        message = f"The model {name!r} does not exist. The model of embeddings is {BASE!r}."
        raise Refusal(404, message, param="model", code="model_not_found")
    if name != BASE:
        code = "missing_model" if name is None else "no_embeddings"
        raise _refused("model", f"must be {BASE!r}: embeddings are the bare base's, without a task's adapter.", code)


def _texts(given: Any, tokenizer: Tokenizer) -> list[tuple[str, Sequence[int]]]:
    """Return the tokens of each text, and where it stands; texts get BOS as the model wants it, tokens are as sent."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_number, given))):
        return [("input", _tokens(given, "input", tokenizer))]
    if not isinstance(given, list) or not given:
        code = "missing_parameter" if given is None else "invalid_value"
        raise _refused("input", "must be text, a list of tokens, or a list of those.", code)
    if len(given) > MOST_INPUTS:
        raise _refused("input", f"at most {MOST_INPUTS} texts, not {len(given)}.")
    if len({type(each) for each in given}) > 1:
        raise _refused("input", "must be all text, or all lists of tokens.", "invalid_type")
    return [(f"input.{i}", _tokens(each, f"input.{i}", tokenizer)) for i, each in enumerate(given)]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(given: Any, place: str, tokenizer: Tokenizer) -> Sequence[int]:
    if not isinstance(given, str | list):
        raise _refused(place, "must be text, or a list of tokens.", "invalid_type")
    if isinstance(given, list) and not all(_is_number(token) and 0 <= token < tokenizer.size for token in given):
        raise _refused(place, f"tokens are whole numbers from 0 to {tokenizer.size - 1}.")
    tokens = tokenizer.tokens(given, special=False, bos=True) if given and isinstance(given, str) else given
    if not tokens:
        raise _refused(place, "must not be empty.")
    return tokens


def _check_lengths(texts: Sequence[tuple[str, Sequence[int]]], context: int) -> None:
    for place, tokens in texts:
        if len(tokens) > context:
            message = f"{place}: this model's maximum context length is {context} tokens, but it has {len(tokens)}."
            raise Refusal(400, message, param=place, code="context_length_exceeded")
    if (count := sum(len(tokens) for _, tokens in texts)) > MOST_TOKENS:
        raise _refused("input", f"at most {MOST_TOKENS} tokens in all, not {count}.")


class Embeddings:
    """Makes embeddings in a thread of its own, a text at a time: requests take turns; a context manager."""

    def __init__(self, model: Model, context: int, threads: int | None = None) -> None:
        """Take the base and the most tokens of a text; memory is taken once somebody asks."""
        self._embedder = Embedder(model, context, threads)
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, "pilocal-embeddings")
        self.width = self._embedder.width
        """How many numbers an embedding has."""

    @property
    def memory(self) -> int:
        """The memory that was taken, in bytes."""
        return self._embedder.memory

    async def response(self, request: EmbeddingRequest, cancelled: threading.Event) -> bytes | None:
        """Return the response as JSON; None once it is `cancelled`.

        Raises RunError when there is not enough memory, or llama.cpp fails.
        """
        loop, parts = asyncio.get_running_loop(), []
        for index, tokens in enumerate(request.texts):

            def make(index: int = index, tokens: Sequence[int] = tokens) -> bytes | None:
                return self._part(index, tokens, request.format, cancelled.is_set)

            part = await loop.run_in_executor(self._thread, make)
            if part is None:
                return None
            parts.append(part)
        usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens}
        end = json.dumps({"model": BASE, "usage": usage}).encode()
        return b'{"object": "list", "data": [' + b", ".join(parts) + b"], " + end[1:]

    def _part(self, index: int, tokens: Sequence[int], form: str, cancelled: Callable[[], bool]) -> bytes | None:
        found = self._embedder.embed(tokens, lambda: cancelled() or self._closing.is_set())
        if found is None:
            return None
        told = found.tolist() if form == "float" else base64.b64encode(found.astype("<f4").tobytes()).decode()
        return json.dumps({"object": "embedding", "index": index, "embedding": told}).encode()

    def close(self) -> None:
        """Give up what goes on, and free the memory."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)
        self._embedder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
