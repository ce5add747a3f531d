"""Has a routed request answered by an engine, and tells an event loop of what comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from pilocal.llamacpp.confidence import Confidence
from pilocal.llamacpp.sampler import Choice, Sampler
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.server.answer import Answer
from pilocal.server.engines import Engines
from pilocal.server.request import ClientRequest
from pilocal.server.routing import Route
from pilocal.server.tool_calls import CallStream
from pilocal.server.tool_family import Family
from pilocal.server.tool_request import ToolRequest
from pilocal.server.wire import Reader, Teller

CHOICE = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "seed",
)


class Asking:
    """The answers to one request: made by the engine's thread, taken by the event loop."""

    def __init__(
        self, route: Route, client: ClientRequest, cancelled: threading.Event, *, watched: bool = False
    ) -> None:
        """Take a request; `cancelled` is set once its client has hung up. Call it in the event loop.

        With `watched`, its answers tell how sure the model was of them.
        """
        self.route = route
        self.client = client
        self.answers: list[Answer] = []
        self._readers: list[Reader] = []
        self._cancelled, self._watched = cancelled, watched
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    async def begin(self, engines: Engines, context: int, family: Family) -> None:
        """Submit it; no answer makes its prompt longer than `context` tokens. `family` is the chat template's."""
        route, body, tools = self.route, self.route.body, self.client.tools
        grammar = self.client.grammar or (None if tools else route.form)
        engine, weights = engines.find(route.model, 1.0 if route.strength is None else route.strength)
        room = context - len(route.prompt)
        vocabulary = await asyncio.to_thread(engines.vocabulary, route.model) if grammar else None
        choice = replace(read_choice(body), grammar=grammar)
        shown = engines.shown(family.shown) if tools else {}
        for number in range(body.get("n", 1)):
            answer = Answer(
                prompt=route.prompt,
                weights=weights,
                sampler=Sampler(choice, number, vocabulary),
                tokenizer=engines.tokenizer,
                max_tokens=min(body.get("max_tokens", room), room),
                stops=_listed(body.get("stop", [])),
                shown=shown,
                likelihoods=_likelihoods(body),
                confidence=Confidence() if self._watched else None,
                cancelled=self._cancelled,
                on_text=self._tell if body.get("stream") else None,
                on_end=self._tell,
            )
            self.answers.append(answer)
            self._readers.append(Reader(_calls(tools, family, choice.seed, number) if tools else None))
        for answer in self.answers:
            engine.submit(answer)

    def text(self, number: int, tokenizer: Tokenizer) -> str:
        """Return all that an answer has said."""
        return tokenizer.text(self.answers[number].tokens).decode(errors="replace")

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return self._cancelled.is_set()

    def again(self, route: Route) -> Asking:
        """Return the same client's request by another route; it ends with the client, too."""
        return Asking(route, self.client, self._cancelled)

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server was stopped, and nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)

    async def first_news(self) -> None:
        """Wait until something has come; raises what the engine failed with."""
        await self._news.wait()
        self._check()

    async def all(self) -> None:
        """Wait until all answers have ended; raises what the engine failed with."""
        while not all(answer.ended for answer in self.answers):
            await self._news.wait()
            self._news.clear()
        self._news.set()  # for `parts`, which may tell of them from now on
        self._check()

    def whole(self, wire: Teller) -> dict[str, Any]:
        """Return the response once all answers have ended."""
        return wire.whole(self.answers, self._readers)

    async def parts(self, wire: Teller) -> AsyncIterator[bytes]:
        """Yield the parts of a stream; raises what the engine failed with."""
        for part in wire.begin(len(self.answers)):
            yield part
        going, told = set(range(len(self.answers))), [0] * len(self.answers)
        while going:
            await self._news.wait()
            self._news.clear()
            for index in sorted(going):
                answer = self.answers[index]
                ended, likely = answer.ended, answer.likely[told[index] :]
                reader = self._readers[index]
                deltas = [*reader.feed(answer.take_text()), *(reader.end() if ended else ())]
                for delta in deltas:
                    yield wire.part(index, delta, None if answer.likelihoods is None else likely)
                    told[index], likely = told[index] + len(likely), []
                if ended:
                    self._check()
                    going.discard(index)
                    yield wire.last(index, reader.finish(answer.finish))
        for part in wire.end(self.answers):
            yield part

    def _check(self) -> None:
        for answer in self.answers:
            if answer.error is not None:
                raise answer.error


def _calls(tools: ToolRequest, family: Family, seed: int | None, number: int) -> CallStream:
    """Return what reads the calls of functions out of an answer; the same seed gives them the same ids."""
    draw = Random() if seed is None else Random(f"{seed} {number}")
    return CallStream(family, tools.names, draw, eager=bool(tools.must_call), parallel=tools.parallel)


def read_choice(body: Mapping[str, Any]) -> Choice:
    """Return how a request wants its tokens chosen."""
    given = {name: body[name] for name in CHOICE if name in body}
    return Choice(**given, bias={int(token): value for token, value in body.get("logit_bias", {}).items()})


def _listed(stop: str | Sequence[str]) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop)


def _likelihoods(body: Mapping[str, Any]) -> int | None:
    asked = body.get("logprobs")
    if asked is None or asked is False:
        return None
    return int(body.get("top_logprobs", 0)) if asked is True else int(asked)
