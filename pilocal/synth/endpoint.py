"""A generator behind an OpenAI-compatible endpoint: retries with patience, a budget, and a key that is never kept."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import sleep
from typing import Any

from pilocal.errors import RunError

KEY = "PILOCAL_API_KEY"
"""The environment's name for the key, if the endpoint wants one."""

TRIES = 6
"""How often a request is sent that gets no answer; the pauses double, from a second on."""

PATIENCE = 120
"""Seconds until an answer has to be there."""

LONGEST_PAUSE = 60
"""Seconds, whatever the endpoint asks for."""

TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may do."""


@dataclass(slots=True)
class Endpoint:
    """Writes with a model that somebody serves."""

    url: str
    """Up to /v1."""
    model: str
    budget: int
    """Requests that may be sent, those that fail included."""
    max_tokens: int = 512
    sent: int = field(default=0, init=False)
    """Requests so far."""

    def __call__(self, requests: Sequence[str]) -> list[str]:
        """Return what the model writes for each request.

        Raises RunError when the endpoint refuses, does not answer, or the budget is used up.
        """
        return [self._ask(request) for request in requests]

    def _ask(self, request: str) -> str:
        """Return the answer to one request, sent again while that may help."""
        said = ""
        for turn in range(TRIES):
            if self.sent >= self.budget:
                fix = "raise [synth] budget and run again; what was made is kept"
                raise RunError(self.url, "the budget of requests is used up", got=self.sent, fix=fix)
            self.sent += 1
            pause = min(2.0**turn, LONGEST_PAUSE)
            try:
                return self._send(request)
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.reason}"
                if error.code not in TEMPORARY:
                    fix = f"check the address, [synth] generator_model and the key in {KEY}"
                    raise RunError(self.url, "the endpoint refuses", got=said, fix=fix) from None
                pause = _asked_pause(error.headers.get("Retry-After"), pause)
            except (urllib.error.URLError, OSError) as error:
                said = str(getattr(error, "reason", error))
            except (ValueError, KeyError, IndexError, TypeError):
                said = "no chat completion"
            if turn + 1 < TRIES:
                sleep(pause)
        fix = "start the endpoint, or correct [synth] generator, and run again; what was made is kept"
        raise RunError(self.url, f"no answer after {TRIES} tries", got=said, fix=fix)

    def _send(self, request: str) -> str:
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}
        body["messages"] = [{"role": "user", "content": request}]
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        sent = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(sent, timeout=PATIENCE) as answer:
            text: str = json.load(answer)["choices"][0]["message"]["content"]
        return text + ""  # None is no text


def _asked_pause(header: str | None, usual: float) -> float:
    """Return the seconds that an endpoint asks to wait, within reason.

    >>> _asked_pause("3", 1.0), _asked_pause("9999", 1.0), _asked_pause("soon", 2.0), _asked_pause(None, 2.0)
    (3.0, 60, 2.0, 2.0)
    """
    try:
        return min(max(0.0, float(header or "")), LONGEST_PAUSE)
    except ValueError:
        return usual
