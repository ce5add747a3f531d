"""Routing: which weights answer a request, and with which prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pilocal.errors import PilocalError
from pilocal.evaluate.arms import BASE_FULL_PROMPT, SHIPPED
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.run_folder.shipped import Shipped
from pilocal.server.chat import PromptTokens
from pilocal.server.full_prompt import PromptWriter, ShareSampler
from pilocal.server.prompt_stripping import Chat
from pilocal.server.recognition import Recognition
from pilocal.server.refusal import Refusal, no_such_model, server_error
from pilocal.server.request import CHATS, SLOTS
from pilocal.server.slot_values import all_slots, check_slots
from pilocal.task.export_table import STRONGEST

INTERNALIZED, FULL_PROMPT = SHIPPED.serve, BASE_FULL_PROMPT.serve
"""The arms of a task; a request to the bare base has the arm `base`."""
STRENGTH_HEADER = "X-Pilocal-Adapter-Scale"
"""The header that gives an adapter's strength, in a request and in its response."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
SEARCHED, SEARCHED_PER_TOKEN = 2**17, 32
"""Characters of a chat, and more for each token of the context, in which the template is looked for unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes, and as what."""

    task: str
    """The name that was asked for."""
    arm: str
    model: str
    """The name of the weights that answer."""
    body: Mapping[str, Any]
    """The request as it is answered."""
    prompt: list[int]
    """The tokens of its prompt."""
    saved_tokens: int = 0
    """How many more the caller sent."""
    form: str | None = None
    """What the answer must be, in GBNF, unless the request has a form of its own."""
    bare: Chat | None = None
    """The chat without anything of the prompt, where an adapter answers one."""
    strength: float | None = None
    """The factor on what the adapter adds, where the request gave one and the adapter answers."""
    values: Mapping[str, str] = field(default_factory=dict)
    """What fills the slots of the template, where an adapter answers a chat."""
    near_miss: bool = False
    """Whether the template is there, but changed or out of place: the base then answers the prompt as it stands."""

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt)


def read_strength(given: str | None) -> float | None:
    """Return the adapter's strength that a request's header gives; raises Refusal for what is no number from 0 to 2.

    >>> read_strength("0.5"), read_strength(None)
    (0.5, None)
    """
    if given is None:
        return None
    strength = float(given) if NUMBER.fullmatch(given.strip()) else -1.0
    if not 0 <= strength <= STRONGEST:
        message = f"{STRENGTH_HEADER}: must be a number from 0 to {STRONGEST:g}."
        raise Refusal(400, message, code="invalid_adapter_scale")
    return strength


class Router:
    """Routes requests to a number of tasks and their base."""

    def __init__(self, tasks: Sequence[Shipped], tokens: PromptTokens, *, context: int, fallback_share: float) -> None:
        """Read every task's examples; `fallback_share` of the requests to tasks get the full prompt."""
        examples = {task.name: task.examples() for task in tasks}
        self._known = {task.name: Recognition(task, examples[task.name]) for task in tasks}
        self._prompts = {task.name: PromptWriter(task, examples[task.name]) for task in tasks}
        self._fused = {task.name for task in tasks if task.fused}
        self._forms = {task.name: task.grammar for task in tasks}
        self._slots = {task.name: tuple(task.slots) for task in tasks}
        self._takes_full_prompt = ShareSampler(fallback_share)
        self._tokens = tokens
        self.family = tokens.family
        """How the model writes calls of functions."""
        self.context = context
        """The most tokens of a prompt and its answer."""
        self._searched = SEARCHED + SEARCHED_PER_TOKEN * context + 4 * max(len(task.template) for task in tasks)

    def name(self, request: Mapping[str, Any]) -> str:
        """Return the task, or the base, that a request names; raises Refusal when there is none of that name."""
        names = [*self._known, BASE]
        name = request.get("model")
        if name is None and len(self._known) == 1:
            return names[0]
        if name is None:
            raise Refusal(
                400, f"model: name one. This server has: {', '.join(names)}.", param="model", code="missing_model"
            )
        if name not in names:
            raise no_such_model(name, names)
        return str(name)

    def route(
        self, path: str, request: Mapping[str, Any], *, full_prompt: bool, strength: float | None = None
    ) -> Route:
        """Return the route of a request; `full_prompt` says that its caller asks for the full prompt.

        The base answers a chat whose template was changed, just as it was sent: the adapter was not taught that prompt.
        Raises Refusal when a request cannot be answered. Where the server itself chose the full prompt, but the request
        has no query or would not fit the context, the adapter answers. It is the adapter, too, whose `strength` the
        caller gives; the server chooses nothing else then.
        """
        name = self.name(request)
        if strength is not None:
            self._check_strength(name, full_prompt=full_prompt)
        route = self._route(path, {**request, "model": name}, full_prompt=full_prompt, sampled=strength is None)
        form = None if path not in CHATS or route.near_miss else self._forms.get(name)
        return replace(route, form=form, strength=None if route.model == BASE else strength)

    def check_embedding(self, *, full_prompt: bool, strength: float | None) -> None:
        """Raise Refusal for what a request for embeddings cannot have: the base makes them as it is."""
        self._refuse_if(full_prompt, "only a chat has a full prompt")
        if strength is not None:
            self._check_strength(BASE, full_prompt=False)

    def _check_strength(self, name: str, *, full_prompt: bool) -> None:
        """Raise Refusal where there is no adapter whose strength could be chosen."""
        fused = f"the weights of {name} are fused with the base" if name in self._fused else None
        bare = "the bare base has no adapter; name a task" if name == BASE else None
        asked = "the base answers the full prompt, without an adapter" if full_prompt else None
        if why := fused or bare or asked:
            raise Refusal(400, f"{STRENGTH_HEADER}: {why}.", code="no_adapter_scale")

    def _route(self, path: str, body: Mapping[str, Any], *, full_prompt: bool, sampled: bool) -> Route:
        name, given = body["model"], body.get(SLOTS, {})
        body = {key: value for key, value in body.items() if key != SLOTS}
        check_slots(name, given, self._slots.get(name, ()))
        if path not in CHATS:
            self._refuse_if(full_prompt, "only a chat has a full prompt")
            return self._raw_route(body)
        if name == BASE:
            self._refuse_if(full_prompt, "the bare base has no full prompt; name a task")
            return self._as_sent(body, BASE)
        if sum(len(message["content"]) for message in body["messages"]) > self._searched:
            self._check_fit(self._tokens.chat(body), body, "messages")  # much faster than to search it
        seen = self._known[name].strip(body["messages"])
        if seen.near_miss:
            return self._as_sent(body, FULL_PROMPT, near_miss=True)
        values = all_slots(given, seen.values, self._slots[name])
        if full_prompt or (sampled and self._takes_full_prompt()):
            full = self._full_prompt_route(name, seen.bare, values, body, asked=full_prompt)
            if full is not None:
                return full
        return self._bare_route(body, seen.bare, values)

    def _raw_route(self, body: Mapping[str, Any]) -> Route:
        """Return the route of a raw prompt; it stays as it is, so the base answers one with the template in it."""
        name, prompt = body["model"], self._tokens.without_bos(body["prompt"])
        tokens = self._check_fit(self._tokens.text(prompt), body, "prompt")
        if not tokens:
            raise Refusal(400, "prompt: must not be empty.", param="prompt", code="invalid_value")
        body = {**body, "prompt": prompt}
        if name == BASE:
            return Route(task=name, arm=BASE, model=BASE, body=body, prompt=tokens)
        if self._known[name].is_near_miss(prompt):
            return Route(task=name, arm=FULL_PROMPT, model=BASE, body=body, prompt=tokens, near_miss=True)
        return Route(task=name, arm=INTERNALIZED, model=name, body=body, prompt=tokens)

    def _as_sent(self, body: Mapping[str, Any], arm: str, *, near_miss: bool = False) -> Route:
        """Return the route of a chat that the base answers as it was sent."""
        tokens = self._check_fit(self._tokens.chat(body), body, "messages")
        return Route(task=body["model"], arm=arm, model=BASE, body=body, prompt=tokens, near_miss=near_miss)

    def _bare_route(self, body: Mapping[str, Any], bare: Chat, values: Mapping[str, str]) -> Route:
        name, sent = body["model"], body["messages"]
        try:
            body = {**body, "messages": self._prompts[name].with_residue(bare, values)}
        except PilocalError as error:
            raise server_error(str(error)) from None
        tokens = self._check_fit(self._tokens.chat(body), body, "messages")
        saved = self._count_saved(body, sent, len(tokens)) if bare is not sent else 0
        known: dict[str, Any] = {"saved_tokens": saved, "bare": bare, "values": values}
        return Route(task=name, arm=INTERNALIZED, model=name, body=body, prompt=tokens, **known)

    def _count_saved(self, body: Mapping[str, Any], sent: Chat, count: int) -> int:
        try:
            return len(self._tokens.chat({**body, "messages": sent})) - count
        except Refusal:  # the chat template takes no system message, or only one; without it the texts can be counted
            texts = [
                sum(len(self._tokens.text(message["content"])) for message in chat) for chat in (sent, body["messages"])
            ]
            return texts[0] - texts[1]

    def with_full_prompt(self, route: Route, *, whole: bool = True) -> Route | None:
        """Return the same request for the base with the full prompt; None where that does not fit.

        With `whole` it wants one answer, and no stream.
        """
        left_out = ("n", "stream", "stream_options") if whole else ()
        body = {name: value for name, value in route.body.items() if name not in left_out}
        if not route.bare:
            return None
        found = self._full_prompt_route(route.task, route.bare, route.values, body, asked=False)
        return found and replace(found, form=route.form)

    def _full_prompt_route(
        self, name: str, bare: Chat, values: Mapping[str, str], body: Mapping[str, Any], *, asked: bool
    ) -> Route | None:
        try:
            chat = self._prompts[name].full(bare, values)
        except PilocalError as error:
            raise server_error(str(error)) from None
        if chat is None:
            self._refuse_if(asked, "the last message must be the user's")
            return None
        body = {**body, "messages": chat}
        tokens = self._tokens.chat(body)
        if asked:
            self._check_fit(tokens, body, "messages")
        elif len(tokens) >= self.context:
            return None
        return Route(task=name, arm=FULL_PROMPT, model=BASE, body=body, prompt=tokens)

    def _refuse_if(self, asked: bool, why: str) -> None:
        if asked:
            raise Refusal(400, f"X-Pilocal-Fallback: {why}.", code="no_full_prompt")

    def _check_fit(self, tokens: list[int], request: Mapping[str, Any], param: str) -> list[int]:
        """Return the tokens; raises Refusal, worded as OpenAI's, when they leave no room for an answer."""
        if len(tokens) < self.context:
            return tokens
        limit = request.get("max_tokens")
        completion = f" and up to {limit} for the completion" if limit else ""
        message = (
            f"This model's maximum context length is {self.context} tokens. However, your request has {len(tokens)}"
        )
        raise Refusal(400, f"{message} in the {param}{completion}.", param=param, code="context_length_exceeded")
