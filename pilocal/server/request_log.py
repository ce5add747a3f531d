"""The request log: its lines, and the file that they are appended to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pilocal.errors import PilocalError
from pilocal.run_folder.files import disk_error


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLogEntry:
    """A finished request; what was asked and answered is in it only when contents are logged."""

    time: str
    """When it arrived, in UTC."""
    path: str
    status: int
    """HTTP's, or 499 when the client hung up before the end."""
    task: str = ""
    """Empty, like `arm`, when the request was refused before its task was known."""
    arm: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    saved_tokens: int = 0
    adapter_scale: float | None = None
    """The adapter's strength, where the request gave one."""
    near_miss: bool = False
    """Whether the template was there, but changed or out of place: the base then answered the prompt as it stood."""
    confidence: float | None = None
    """How sure the adapter was, where `--fallback-on` watches: nats per token, at most 0. The arm says who answered."""
    first_token_seconds: float | None = None
    seconds: float = 0.0
    """From the request to the end of its answer, the time in the queue included."""
    error: str | None = None
    """OpenAI's code or type of the refusal."""
    prompt: str | Sequence[Any] | None = None
    """What the model was asked, when contents are logged."""
    answer: str | None = None
    """What it said, when contents are logged."""

    def line(self) -> str:
        """Return a line for people.

        >>> RequestLogEntry(time="", path="/v1/completions", status=429, error="rate_limit_exceeded").line()
        '/v1/completions 429 rate_limit_exceeded in 0 ms'
        >>> RequestLogEntry(time="", path="/v1/chat/completions", status=200, task="lights", arm="internalized",
        ...                 prompt_tokens=9, completion_tokens=4, saved_tokens=310,
        ...                 first_token_seconds=0.012, seconds=0.025).line()
        '/v1/chat/completions 200 lights internalized: 9 tokens in, 4 out, 310 saved; first in 12 ms, all in 25 ms'
        """
        took = f"in {1000 * self.seconds:.0f} ms"
        if not self.arm:
            return " ".join(part for part in (self.path, str(self.status), self.error, took) if part)
        tokens = f"{self.prompt_tokens} tokens in, {self.completion_tokens} out, {self.saved_tokens} saved"
        first = "" if self.first_token_seconds is None else f"first in {1000 * self.first_token_seconds:.0f} ms, "
        arm = f"{self.arm} (near miss)" if self.near_miss else self.arm
        return f"{self.path} {self.status} {self.task} {arm}: {tokens}; {first}all {took}"

    def json(self) -> str:
        """Return a line of JSON, without the fields that are None.

        >>> RequestLogEntry(time="", path="/v1/completions", status=404, error="model_not_found").json()[:70]
        '{"time": "", "path": "/v1/completions", "status": 404, "task": "", "ar'
        """
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(fields, ensure_ascii=False)


class RequestLog:
    """A file that finished requests are appended to, one JSON object per line; a context manager.

    Several servers may share it. Where the disk fails, requests are answered all the same, and left out of the file.
    """

    def __init__(self, path: Path, warn: Callable[[PilocalError], object]) -> None:
        """Open the file, and tell `warn` once the disk begins to fail; raises RunError where it cannot be opened."""
        self._path, self._warn = path, warn
        self._fails = self._is_cut = False
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise disk_error(path, error) from None

    def write(self, entry: RequestLogEntry) -> None:
        """Append a line; where a full disk cuts it, the next stands on a line of its own."""
        line = b"\n" * self._is_cut + entry.json().encode(errors="backslashreplace") + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            if not self._fails:
                self._warn(disk_error(self._path, error))
            self._fails = True
        else:
            self._is_cut, self._fails = written < len(line), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
