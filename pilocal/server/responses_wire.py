"""What an answer is in the words of OpenAI's Responses API: whole, or as the events of a stream.

Whole or streamed, an answer is built from the same pieces, so that the last event holds what a whole response says.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pilocal.llamacpp.sampler import Choice
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.server.answer import LENGTH, Answer, Likelihood
from pilocal.server.refusal import Refusal
from pilocal.server.tool_calls import Delta
from pilocal.server.wire import Reader, told_likelihood

DONE, GOES_ON, CUT_OFF = "completed", "in_progress", "incomplete"
"""How far a response is, or one of its items."""
USUAL: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": Choice().temperature,
    "text": {},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": Choice().top_p,
    "user": None,
}
"""What a response repeats of its request, and what was done where the request left it out."""
NEVER: Mapping[str, Any] = {
    "background": False,
    "error": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": False,
    "truncation": "disabled",
}
"""What is the same in every response."""


class ResponsesWire:
    """How the answer to one request is written; it is used once."""

    def __init__(self, *, model: str, prompt_tokens: int, tokenizer: Tokenizer, sent: Mapping[str, Any]) -> None:
        """Take the name that was asked for, and what the client sent."""
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._tokenizer = tokenizer
        self._said = {name: sent.get(name, usual) for name, usual in USUAL.items()}
        self._said["tools"] = [{"parameters": None, "strict": False, **tool} for tool in self._said["tools"]]
        self._said["text"] = {"format": self._said["text"].get("format") or {"type": "text"}}
        self._head = {"id": f"resp_{secrets.token_hex(24)}", "object": "response", "created_at": int(time.time())}
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._status = GOES_ON
        self._reason: str | None = None

    def whole(self, answers: Sequence[Answer], readers: Sequence[Reader]) -> dict[str, Any]:
        """Return the response to a request whose answer has ended; the reader reads calls out of its text."""
        (answer,), (reader,) = answers, readers
        likely = None if answer.likelihoods is None else answer.likely
        for delta in [*reader.feed(answer.take_text()), *reader.end()]:
            self.part(0, delta, likely)
            likely = None
        self.last(0, reader.finish(answer.finish))
        return self._response(answer)

    def begin(self, count: int) -> Iterator[bytes]:
        """Yield the first events of a stream."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response(None))

    def part(self, index: int, delta: Delta, likely: Sequence[Likelihood] | None) -> bytes:
        """Return the events of a piece of the answer."""
        events = self._text(delta["content"], likely or ()) if "content" in delta else b""
        return events + b"".join(self._call(piece) for piece in delta.get("tool_calls", ()))

    def last(self, index: int, finish: str | None) -> bytes:
        """Return the events that end the answer; None for an answer that was given up."""
        self._status = CUT_OFF if finish in (LENGTH, None) else DONE
        self._reason = "max_output_tokens" if finish == LENGTH else None
        begun = b"" if self._output else self._begin_text()
        return begun + self._end_item(self._status)

    def end(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """Yield what ends a stream."""
        yield self._event(f"response.{self._status}", response=self._response(answers[0]))

    def failed(self, refusal: Refusal) -> bytes:
        """Return what ends a stream that failed."""
        error = refusal.body["error"]
        told = {"code": error["code"] or "server_error", "message": error["message"]}
        response = {**self._response(None), "status": "failed", "error": told}
        return self._event("response.failed", response=response)

    def _text(self, content: str, likely: Sequence[Likelihood]) -> bytes:
        begun = b"" if self._is_in("message") else self._end_item(DONE) + self._begin_text()
        part = self._output[-1]["content"][0]
        told = [told_likelihood(self._tokenizer, one) for one in likely]
        part["text"] += content
        part["logprobs"] += told
        return begun + self._event("response.output_text.delta", **self._in_text(), delta=content, logprobs=told)

    def _call(self, piece: Mapping[str, Any]) -> bytes:
        function, begun = piece["function"], b""
        if "id" in piece:
            call = {"call_id": piece["id"], "name": function["name"], "arguments": ""}
            begun = self._end_item(DONE) + self._begin_item("function_call", "fc", call)
        item, arguments = self._output[-1], function["arguments"]
        item["arguments"] += arguments
        if not arguments:
            return begun
        return begun + self._event("response.function_call_arguments.delta", **self._in_item(), delta=arguments)

    def _begin_text(self) -> bytes:
        begun = self._begin_item("message", "msg", {"role": "assistant", "content": []})
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
        self._output[-1]["content"].append(part)
        return begun + self._event("response.content_part.added", **self._in_text(), part=part)

    def _begin_item(self, kind: str, prefix: str, more: Mapping[str, Any]) -> bytes:
        item = {"id": f"{prefix}_{secrets.token_hex(24)}", "type": kind, "status": GOES_ON, **more}
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _end_item(self, status: str) -> bytes:
        """Return the events that end the item that goes on, if there is one."""
        item = self._output[-1] if self._output else None
        if item is None or item["status"] != GOES_ON:
            return b""
        if item["type"] == "message":
            (part,) = item["content"]
            said = {"text": part["text"], "logprobs": part["logprobs"]}
            events = self._event("response.output_text.done", **self._in_text(), **said)
            events += self._event("response.content_part.done", **self._in_text(), part=part)
        else:
            said = {"name": item["name"], "arguments": item["arguments"]}
            events = self._event("response.function_call_arguments.done", **self._in_item(), **said)
        item["status"] = status
        return events + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _is_in(self, kind: str) -> bool:
        return bool(self._output) and self._output[-1]["type"] == kind and self._output[-1]["status"] == GOES_ON

    def _in_item(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _in_text(self) -> dict[str, Any]:
        return {**self._in_item(), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        said = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(said, ensure_ascii=False)}\n\n".encode()

    def _response(self, answer: Answer | None) -> dict[str, Any]:
        """Return the response as far as it is known; `answer` is the one that has ended, for its usage."""
        return {
            **self._head,
            **NEVER,
            **self._said,
            "model": self._model,
            "status": self._status,
            "completed_at": int(time.time()) if self._status == DONE else None,
            "incomplete_details": {"reason": self._reason} if self._reason else None,
            "output": self._output,
            "usage": None if answer is None else self._usage(answer),
        }

    def _usage(self, answer: Answer) -> dict[str, Any]:
        made = len(answer.tokens)
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": answer.reused,
                "cache_write_tokens": self._prompt_tokens - answer.reused,
            },
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._prompt_tokens + made,
        }
