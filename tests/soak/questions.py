"""What the clients of a soak ask: each client has questions of its own, and no other client's have the same answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from types import MappingProxyType
from typing import Any

from pilocal.run_folder.shipped import BARE_BASE, Shipped
from pilocal.server.request import CHAT, COMPLETION, EMBEDDINGS, RESPONSES
from tests.bench.http_load import get, post

NOTHING: Mapping[str, str] = MappingProxyType({})
STRENGTHS = ("0", "0.25", "1.5")
DATA = "data: "
TOKENS = 32
"""Of an answer, at the most."""


@dataclass(frozen=True, slots=True)
class Question:
    """What one client alone asks, in one or several forms that have the same answer."""

    owner: int
    kind: str
    forms: tuple[tuple[bytes, Callable[[bytes], str]], ...]
    """Requests, and what reads the answer out of a body."""
    status: int = 200
    answer: str | None = None
    """Where it is known before anybody is asked; else it is what the server says when it has nothing else to do."""
    likely: tuple[bytes, Callable[[bytes], list[Choice]]] | None = None
    """The request that also tells how likely each token was, where an answer may differ between tokens as likely."""
    is_owned: bool = True
    """Whether no other client may have the same answer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A token of an answer."""

    said: bytes
    second: bytes
    """The most likely one but for it."""
    gap: float
    """How much more likely it was, in nats."""


def parts_of(body: bytes) -> bytes:
    """Return a body that was sent in chunks; raises ValueError for one that is not whole."""
    found, at = bytearray(), 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if not size:
            return bytes(found)
        found += body[end + 2 : end + 2 + size]
        at = end + size + 4


def events(body: bytes) -> list[Any]:
    """Return what a stream tells; raises ValueError for one that does not end as OpenAI's do."""
    lines = [line[len(DATA) :] for line in parts_of(body).decode().splitlines() if line.startswith(DATA)]
    told = [json.loads(line) for line in lines if line != "[DONE]"]
    if lines[-1] != "[DONE]" and told[-1].get("type") not in ("response.completed", "response.incomplete"):
        raise ValueError(f"a stream that does not end: {lines[-1]}")
    return told


def message(body: bytes) -> str:
    """Return the answer of a chat."""
    return str(json.loads(body)["choices"][0]["message"]["content"])


def streamed_message(body: bytes) -> str:
    """Return the same of a stream."""
    return "".join(part["choices"][0]["delta"].get("content") or "" for part in events(body) if part["choices"])


def text(body: bytes) -> str:
    """Return what follows a raw prompt."""
    return str(json.loads(body)["choices"][0]["text"])


def streamed_text(body: bytes) -> str:
    """Return the same of a stream."""
    return "".join(part["choices"][0]["text"] for part in events(body) if part["choices"])


def response(body: bytes) -> str:
    """Return the answer of a response."""
    return str(json.loads(body)["output"][0]["content"][0]["text"])


def streamed_response(body: bytes) -> str:
    """Return the same of a stream, whose last event has to say what its parts said."""
    told = events(body)
    said = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
    if (whole := told[-1]["response"]["output"][0]["content"][0]["text"]) != said:
        raise ValueError(f"parts that are {said!r} of a response that is {whole!r}")
    return said


def vector(body: bytes) -> str:
    """Return an embedding."""
    return str(json.loads(body)["data"][0]["embedding"])


def fields(body: bytes) -> str:
    """Return the JSON that an answer is, in one spelling."""
    return json.dumps(json.loads(message(body)), sort_keys=True)


def refusal(body: bytes) -> str:
    """Return why a request was refused."""
    return str(json.loads(body)["error"]["message"])


def models(body: bytes) -> str:
    """Return the names of the models."""
    return " ".join(model["id"] for model in json.loads(body)["data"])


def counts(body: bytes) -> str:
    """Return the names of what is counted."""
    return " ".join(re.findall(r"^# HELP (\S+)", body.decode(), re.MULTILINE))


def as_sent(body: bytes) -> str:
    """Return a body."""
    return body.decode()


def choices(body: bytes) -> list[Choice]:
    """Return the tokens of a chat's answer, each with the next."""
    found = []
    for token in json.loads(body)["choices"][0]["logprobs"]["content"]:
        others = [one for one in token["top_logprobs"] if one["bytes"] != token["bytes"]]
        second = others[0] if others else token
        found.append(Choice(bytes(token["bytes"]), bytes(second["bytes"]), token["logprob"] - second["logprob"]))
    return found


def raw_choices(body: bytes) -> list[Choice]:
    """Return the same of what follows a raw prompt."""
    told = json.loads(body)["choices"][0]["logprobs"]
    found = []
    for said, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        second = max((other for other in top if other != said), key=lambda other: top[other], default=said)
        found.append(Choice(said.encode(), second.encode(), logprob - top.get(second, logprob)))
    return found


@dataclass(frozen=True)
class Asker:
    """Makes the questions of clients, from the tasks that are served."""

    tasks: Sequence[Shipped]
    ends: Iterable[int]
    """The tokens that end an answer."""
    rng: Random

    @cached_property
    def banned(self) -> dict[str, int]:
        """The bias of an answer that does not end."""
        return {str(token): -100 for token in self.ends}

    def questions(self, owner: int) -> Iterator[Question]:
        """Yield questions of a client, of every kind."""
        first = self.tasks[0]
        yield self.chat(owner, "short answer", first.name, [self.query(owner, first)], ends=True)
        for task in self.tasks:
            yield self.chat(owner, "bare query", task.name, [self.query(owner, task)])
        adapted = [task for task in self.tasks if task.adapter]
        for strength in STRENGTHS:
            task = self.rng.choice(adapted)
            headers = {"X-Pilocal-Adapter-Scale": strength}
            yield self.chat(owner, "strength", task.name, [self.query(owner, task)], headers)
        task = self.rng.choice(self.tasks)
        said = {"role": "system", "content": task.template}
        yield self.chat(owner, "old caller", task.name, [said, self.query(owner, task)])
        full = {"X-Pilocal-Fallback": "full-prompt"}
        yield self.chat(owner, "full prompt", task.name, [self.query(owner, task)], full)
        yield self.chat(owner, "base", BARE_BASE, [self.query(owner, task)])
        yield self.raw(owner)
        yield self.embedding(owner)
        yield self.formed(owner)
        yield from self.fetched(owner)

    def query(self, owner: int, task: Shipped) -> dict[str, str]:
        """Return a message: one of the task's queries, with something that only this client says."""
        asked = self.rng.choice(task.examples()).query
        return {"role": "user", "content": f"{asked} {owner}-{self.rng.randrange(1000)}"}

    def chat(
        self,
        owner: int,
        kind: str,
        model: str,
        messages: Sequence[Any],
        headers: Mapping[str, str] = NOTHING,
        *,
        ends: bool = False,
    ) -> Question:
        """Return a question with the forms of a chat: at two endpoints, whole and streamed.

        Unless it `ends`, the answer goes on to its limit, so that it differs from others and can be left amid it.
        """
        greedy = {"model": model, "temperature": 0, "logit_bias": {} if ends else self.banned}
        body = {**greedy, "messages": messages, "max_tokens": TOKENS}
        other = {**greedy, "input": messages, "max_output_tokens": TOKENS}
        stream, likely = {"stream": True}, {"logprobs": True, "top_logprobs": 2}
        forms = (
            (sent(body, CHAT, headers), message),
            (sent(body | stream, CHAT, headers), streamed_message),
            (sent(other, RESPONSES, headers), response),
            (sent(other | stream, RESPONSES, headers), streamed_response),
        )
        return Question(owner, kind, forms, likely=(sent(body | likely, CHAT, headers), choices))

    def raw(self, owner: int) -> Question:
        """Return a question of which the base is asked as it stands."""
        prompt = f"{self.rng.choice(self.tasks).template} {self.rng.randrange(10**6)}"
        body: dict[str, Any] = {"model": BARE_BASE, "prompt": prompt[-200:], "temperature": 0, "max_tokens": TOKENS}
        body["logit_bias"] = self.banned
        forms = (sent(body, COMPLETION), text), (sent(body | {"stream": True}, COMPLETION), streamed_text)
        return Question(owner, "raw prompt", forms, likely=(sent(body | {"logprobs": 2}, COMPLETION), raw_choices))

    def embedding(self, owner: int) -> Question:
        """Return a text to be embedded."""
        body = {"model": BARE_BASE, "input": f"client {owner} says {self.rng.randrange(10**9)}"}
        forms = ((sent(body | {"encoding_format": "base64"}, EMBEDDINGS), vector),)
        return Question(owner, "embedding", forms)

    def formed(self, owner: int) -> Question:
        """Return a question of whose answers the form leaves one."""
        ticket = f"{owner}-{self.rng.randrange(10**6)}"
        kept = {"ticket": {"const": ticket}}
        schema = {"type": "object", "properties": kept, "required": ["ticket"], "additionalProperties": False}
        user = {"role": "user", "content": "Which ticket?"}
        body: dict[str, Any] = {"model": self.rng.choice(self.tasks).name, "messages": [user], "temperature": 0}
        form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": schema, "strict": True}}
        forms = ((sent(body | {"response_format": form}, CHAT), fields),)
        return Question(owner, "JSON schema", forms, answer=json.dumps({"ticket": ticket}))

    def fetched(self, owner: int) -> Iterator[Question]:
        """Yield what is refused, and what is fetched."""
        name = f"nobody-{owner}-{self.rng.randrange(10**6)}"
        asked = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
        yield Question(owner, "refused", ((sent(asked, CHAT), refusal),), status=404)
        for path, read in (("/v1/models", models), ("/metrics", counts), ("/", as_sent)):
            yield Question(owner, "page", ((get(path), read),), is_owned=False)


def sent(body: Mapping[str, Any], path: str, headers: Mapping[str, str] = NOTHING) -> bytes:
    """Return a request of a body."""
    return post(json.dumps(body).encode(), path, headers)


def is_tie(said: str, tokens: Sequence[Choice], most: float) -> bool:
    """Tell whether an answer is another, given as its tokens, or parts from it where a second token was as likely.

    >>> tokens = [Choice(b"a", b"b", 3.0), Choice(b"c", b"d", 0.01)]
    >>> is_tie("ac", tokens, 0.1), is_tie("ad", tokens, 0.1), is_tie("b", tokens, 0.1), is_tie("ae", tokens, 0.1)
    (True, True, False, False)
    """
    left = said.encode()
    for token in tokens:
        if token.gap <= most and left.startswith(token.second):
            return True
        if not left.startswith(token.said):
            return False
        left = left[len(token.said) :]
    return not left
