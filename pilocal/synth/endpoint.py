"""A generator behind an OpenAI-compatible endpoint: retries with patience, a budget, and a key that is never kept."""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Thread
from time import sleep
from typing import Any

from pilocal.errors import RunError

KEY = "PILOCAL_API_KEY"
"""The environment's name for the key, if the endpoint wants one."""

TRIES = 6
"""How often a request is sent that gets no answer; the pauses double, from a second on."""

PATIENCE = 120
"""Seconds until an answer has to be there."""

MARGIN = 5
"""Seconds that a request which is not answered in time has to say so itself."""

LONGEST_PAUSE = 60
"""Seconds, whatever the endpoint asks for."""

MOST_BYTES = 2**24
"""Of an answer."""

TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may do."""


SHOWN = 200
"""Characters of what an endpoint says that an error quotes."""

CHARACTERS = 4
"""Of a token, where the endpoint does not count any."""


@dataclass(slots=True)
class Endpoint:
    """Writes with a model that somebody serves."""

    url: str
    """Up to /v1."""
    model: str
    budget: int
    """Requests that may be sent, those that fail included."""
    max_tokens: int = 512
    budget_tokens: int | None = None
    """Tokens that may be used, of requests and answers together; None for no limit."""
    sent: int = field(default=0, init=False)
    """Requests so far."""
    used: int = field(default=0, init=False)
    """Tokens so far, as the endpoint counts them, or at a guess where it does not."""

    def __call__(self, requests: Sequence[str]) -> list[str]:
        """Return what the model writes for each request.

        Raises RunError when the endpoint refuses, does not answer, or the budget is used up.
        """
        return [self._ask(request) for request in requests]

    def _ask(self, request: str) -> str:
        """Return the answer to one request, sent again while that may help."""
        said = ""
        for turn in range(TRIES):
            self._check_budget()
            self.sent += 1
            pause = min(2.0**turn, LONGEST_PAUSE)
            try:
                return self._send(request)
            except urllib.error.HTTPError as error:
                with error:  # it holds the connection
                    said = _told(error)
                if error.code not in TEMPORARY:
                    fix = f"check the address, [synth] generator_model and the key in {KEY}; what was made is kept"
                    raise RunError(self.url, "the endpoint refuses", got=said, fix=fix) from None
                pause = _asked_pause(error.headers.get("Retry-After"), pause)
            except (http.client.HTTPException, OSError) as error:
                said = str(getattr(error, "reason", error)) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
                said = "no chat completion"
            if turn + 1 < TRIES:
                sleep(pause)
        fix = "start the endpoint, or correct [synth] generator, and run again; what was made is kept"
        raise RunError(self.url, f"no answer after {TRIES} tries", got=said, fix=fix)

    def _check_budget(self) -> None:
        """Raise RunError when nothing more may be sent."""
        requests = ("budget", "requests", self.sent, self.budget)
        tokens = ("budget_tokens", "tokens", self.used, self.budget_tokens)
        for key, what, used, most in (requests, tokens):
            if most is not None and used >= most:
                fix = f"raise [synth] {key} and run again; what was made is kept"
                raise RunError(self.url, f"the budget of {what} is used up", got=used, fix=fix)

    def _send(self, request: str) -> str:
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}
        body["messages"] = [{"role": "user", "content": request}]
        headers = {"Content-Type": "application/json"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        sent = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        said = json.loads(_in_time(sent))
        text: str = said["choices"][0]["message"]["content"] + ""  # None is no text
        text.encode()  # half a surrogate pair is none, either
        counted = (said.get("usage") or {}).get("total_tokens")
        guess = (len(request) + len(text)) // CHARACTERS
        self.used += counted if isinstance(counted, int) and counted > 0 else guess
        return text


def _key() -> str:
    return os.environ.get(KEY, "").strip()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection, which would take the key along to whatever it names."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request."""


def _in_time(request: urllib.request.Request) -> bytes:
    """Return the body of an answer; raises TimeoutError when it is not there in time, however its head trickles in."""
    found: Future[bytes] = Future()

    def ask() -> None:
        try:
            ends = time.monotonic() + PATIENCE
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=PATIENCE) as answer:
                found.set_result(_read(answer, ends))
        except BaseException as error:  # whatever it is, it is raised where somebody waits
            found.set_exception(error)

    asking = Thread(target=ask, daemon=True)  # what still trickles in afterwards holds nobody up
    asking.start()
    asking.join(PATIENCE + MARGIN)
    if not found.done():
        raise TimeoutError(f"the answer did not begin within {PATIENCE} s")
    return found.result()


def _read(answer: Any, ends: float) -> bytes:
    """Return an answer's body; raises TimeoutError when it is not there at a time, however it trickles in."""
    parts = list[bytes]()
    size = 0
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"an answer has at most {MOST_BYTES} bytes")
        if time.monotonic() > ends:
            raise TimeoutError(f"the answer was not complete after {PATIENCE} s")
    return b"".join(parts)


def _told(error: urllib.error.HTTPError) -> str:
    """Return the status of a refusal and what the endpoint says of it, without the key."""
    try:
        body = error.read(1 << 16).decode("utf-8", "replace")
        said = json.loads(body)["error"]["message"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError):
        said = ""
    text = f"{error.code} {error.reason}" + (f": {str(said)[:SHOWN]}" if said else "")
    key = _key()
    return text.replace(key, "***") if key else text


def _asked_pause(header: str | None, usual: float) -> float:
    """Return the seconds that an endpoint asks to wait, or until when, within reason.

    >>> _asked_pause("3", 1.0), _asked_pause("9999", 1.0), _asked_pause("soon", 2.0), _asked_pause(None, 2.0)
    (3.0, 60, 2.0, 2.0)
    >>> _asked_pause("Wed, 21 Oct 2015 07:28:00 GMT", 2.0), _asked_pause("nan", 2.0)
    (0.0, 2.0)
    """
    try:
        seconds = float(header or "")
    except ValueError:
        seconds = _seconds_until(header or "")
    return usual if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_PAUSE)


def _seconds_until(date: str) -> float:
    """Return how far away a date of HTTP is; nan where it is none."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return math.nan
