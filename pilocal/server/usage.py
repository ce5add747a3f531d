"""The tokens of a streamed answer, as OpenAI tells them when a client asks with `stream_options`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

EVENT, END = b"data: {", b"data: [DONE]"
COMMON = ("id", "object", "created", "model")
"""What all parts of a stream have in common."""


def wants_usage(request: Mapping[str, Any]) -> bool:
    """Tell whether a request asks for its usage at the end of its stream."""
    return bool((request.get("stream_options") or {}).get("include_usage"))


class StreamedUsage:
    r"""Adds `usage` to a stream of server-sent events: null in every part, and the numbers in one more at the end.

    >>> add = StreamedUsage(lambda: (9, 4))
    >>> add(b'data: {"id": "1", "choices": [{}]}\n\n')
    b'data: {"id": "1", "choices": [{}], "usage": null}\n\n'
    >>> add(b"data: [DONE]\n\n").splitlines()[0][:60]
    b'data: {"id": "1", "choices": [], "usage": {"prompt_tokens": '
    """

    def __init__(self, count: Callable[[], tuple[int, int]]) -> None:
        """Take what counts the tokens of prompt and answer, once the answer has ended."""
        self._count = count
        self._common: dict[str, Any] = {}

    def __call__(self, event: bytes) -> bytes:
        """Return one event, or two at the end of the stream."""
        if event.startswith(END):
            prompt, completion = self._count()
            usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
            return _event({**self._common, "choices": [], "usage": usage}) + event
        if not event.startswith(EVENT):
            return event
        part = json.loads(event.removeprefix(b"data: "))
        if "choices" not in part:
            return event
        self._common = {name: part[name] for name in COMMON if name in part}
        return _event({**part, "usage": None})


def _event(part: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(part).encode() + b"\n\n"
