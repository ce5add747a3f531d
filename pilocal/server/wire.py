"""What an answer is in OpenAI's words: whole, or as the parts of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.server.answer import LENGTH, Answer, Likelihood
from pilocal.server.refusal import Refusal
from pilocal.server.tool_calls import CallStream, Delta, join

END_OF_STREAM = b"data: [DONE]\n\n"


class Reader:
    """Reads an answer's text as it comes: all of it content, or with calls of functions in it."""

    def __init__(self, calls: CallStream | None) -> None:
        self._calls = calls

    def feed(self, text: str) -> list[Delta]:
        """Return what is new with the next piece of the text."""
        if self._calls is not None:
            return self._calls.feed(text)
        return [{"content": text}] if text else []

    def end(self) -> list[Delta]:
        """Return what is left at the end of the text."""
        return [] if self._calls is None else self._calls.end()

    def finish(self, finish: str | None) -> str | None:
        """Return why the answer has ended, in OpenAI's words."""
        if self._calls is None or finish is None:
            return finish
        return self._calls.finish_reason(cut_off=finish == LENGTH)


class Teller(Protocol):
    """Writes the answers to one request, in the words of the endpoint that was asked."""

    def whole(self, answers: Sequence[Answer], readers: Sequence[Reader]) -> dict[str, Any]:
        """Return the response to a request whose answers have ended; `readers` read calls out of their texts."""

    def begin(self, count: int) -> Iterator[bytes]:
        """Yield the first parts of a stream of so many answers."""

    def part(self, index: int, delta: Delta, likely: Sequence[Likelihood] | None) -> bytes:
        """Return a part of a stream that goes on with some `content`, or with a call."""

    def last(self, index: int, finish: str | None) -> bytes:
        """Return the part that ends an answer."""

    def end(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """Yield what ends a stream."""

    def failed(self, refusal: Refusal) -> bytes:
        """Return what ends a stream that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How the answers to one request are written; a chat's otherwise than a raw prompt's."""

    chat: bool
    model: str
    """The name that was asked for."""
    prompt_tokens: int
    tokenizer: Tokenizer
    echo: str = ""
    """What is put before the text, where a raw prompt is to come back with its answer."""
    usage: bool = False
    """Whether a stream tells its usage."""
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer], readers: Sequence[Reader]) -> dict[str, Any]:
        """Return the response to a request whose answers have ended; `readers` read calls out of their texts."""
        kind = "chat.completion" if self.chat else "text_completion"
        pairs = enumerate(zip(answers, readers, strict=True))
        choices = [self._choice(index, answer, reader) for index, (answer, reader) in pairs]
        return self._head(kind) | {"choices": choices, "usage": self._usage(answers)}

    def begin(self, count: int) -> Iterator[bytes]:
        """Yield the first parts of a stream of so many answers."""
        if self.chat:
            for index in range(count):
                yield self._part({"index": index, "delta": {"role": "assistant", "content": ""}}, None, None)
        elif self.echo:
            for index in range(count):
                yield self._part({"index": index, "text": self.echo}, None, None)

    def part(self, index: int, delta: Delta, likely: Sequence[Likelihood] | None) -> bytes:
        """Return a part of a stream that goes on with some `content`, or with a call."""
        said = {"delta": delta} if self.chat else {"text": delta["content"]}
        return self._part({"index": index} | said, None, self._likelihoods(likely))

    def last(self, index: int, finish: str | None) -> bytes:
        """Return the part that ends an answer."""
        said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._part({"index": index} | said, finish, None)

    def end(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """Yield what ends a stream."""
        if self.usage:
            yield self._event({"choices": [], "usage": self._usage(answers)})
        yield END_OF_STREAM

    def failed(self, refusal: Refusal) -> bytes:
        """Return what ends a stream that failed."""
        return b"data: " + json.dumps(refusal.body).encode() + b"\n\n"

    def _choice(self, index: int, answer: Answer, reader: Reader) -> dict[str, Any]:
        text, calls = join([*reader.feed(answer.take_text()), *reader.end()])
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": text or None, "tool_calls": [call.message for call in calls]}
        said: dict[str, Any] = {"message": message} if self.chat else {"text": self.echo + text}
        likely = answer.likely if answer.likelihoods is not None else None
        finish = reader.finish(answer.finish)
        return {"index": index} | said | {"logprobs": self._likelihoods(likely), "finish_reason": finish}

    def _part(self, choice: Mapping[str, Any], finish: str | None, logprobs: Any) -> bytes:
        whole = {**choice, "logprobs": logprobs, "finish_reason": finish}
        return self._event({"choices": [whole]} | ({"usage": None} if self.usage else {}))

    def _event(self, part: Mapping[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return b"data: " + json.dumps({**self._head(kind), **part}, ensure_ascii=False).encode() + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.created, "model": self.model}

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        count = sum(len(answer.tokens) for answer in answers)
        total = self.prompt_tokens + count
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count, "total_tokens": total}

    def _likelihoods(self, likely: Sequence[Likelihood] | None) -> dict[str, Any] | None:
        if likely is None:
            return None
        if self.chat:
            return {"content": [told_likelihood(self.tokenizer, one) for one in likely]}
        return {
            "tokens": [self._text(one.token) for one in likely],
            "token_logprobs": [one.logprob for one in likely],
            "top_logprobs": [{self._text(token): value for token, value in one.others} for one in likely],
        }

    def _text(self, token: int) -> str:
        return self.tokenizer.text([token]).decode(errors="replace")


def told_likelihood(tokenizer: Tokenizer, one: Likelihood) -> dict[str, Any]:
    """Return how likely a token was, as OpenAI's chats have it."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.text([token])
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    return told(one.token, one.logprob) | {"top_logprobs": [told(token, value) for token, value in one.others]}
