"""What becomes of a request: whose weights answer it, and what they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilocal.errors import PilocalError
from pilocal.evaluate.arms import BASE_FULL_PROMPT, SHIPPED
from pilocal.run.shipped import Shipped
from pilocal.serve.chat import Tokenizer
from pilocal.serve.full_prompt import Draw, FullPrompt
from pilocal.serve.prompt_stripping import Chat, known_turns, strip
from pilocal.serve.refusal import Refusal, server_error
from pilocal.serve.request import CHAT
from pilocal.serve.weights import BASE

INTERNALIZED, FULL_PROMPT = SHIPPED.serve, BASE_FULL_PROMPT.serve
"""The arms of a task; requests to the bare base are their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request, ready to be answered."""

    task: str
    """The name that was asked for."""
    arm: str
    model: str
    """The name of the weights that answer."""
    body: Mapping[str, Any]
    """The request as llama-cpp-python gets it."""
    prompt_tokens: int
    saved_tokens: int
    """How many more the caller had sent."""


class Planner:
    """Plans requests for a number of tasks and their base."""

    def __init__(self, tasks: Sequence[Shipped], tokenizer: Tokenizer, *, context: int, share: float) -> None:
        """Read every task's examples; `share` of the requests to a task gets the full prompt."""
        examples = {task.name: task.examples() for task in tasks}
        self._templates = {task.name: task.template for task in tasks}
        self._known = {name: known_turns(each) for name, each in examples.items()}
        self._full = {task.name: FullPrompt(task, examples[task.name]) for task in tasks}
        self._draw = Draw(share)
        self._tokenizer = tokenizer
        self._context = context

    def name(self, request: Mapping[str, Any]) -> str:
        """Return the task, or the base, that a request names; raises Refusal when there is no such."""
        names = [*self._templates, BASE]
        name = request.get("model")
        if name is None and len(self._templates) == 1:
            return names[0]
        known = f"This server has: {', '.join(names)}."
        if name is None:
            raise Refusal(400, f"model: name one. {known}", param="model", code="missing_model")
        if name not in names:
            message = f"The model {name!r} does not exist. {known}"
            raise Refusal(404, message, param="model", code="model_not_found")
        return str(name)

    def plan(self, path: str, request: Mapping[str, Any], *, full_prompt: bool) -> Plan:
        """Return the plan of a request; `full_prompt` asks for that arm, whatever would have been drawn.

        Raises Refusal when it cannot be answered. A request that was only drawn for the full prompt, but has no query
        or would not fit the context, is answered by the adapter.
        """
        name = self.name(request)
        body = {**request, "model": name}
        if path != CHAT:
            self._refuse(full_prompt, "only a chat has a full prompt")
            body["prompt"] = self._tokenizer.without_bos(request.get("prompt", ""))
            count = self._fitting(self._tokenizer.text(body["prompt"]), request, "prompt")
            arm = BASE if name == BASE else INTERNALIZED
            return Plan(task=name, arm=arm, model=name, body=body, prompt_tokens=count, saved_tokens=0)
        if name == BASE:
            self._refuse(full_prompt, "the bare base has no full prompt; name a task")
            count = self._fitting(self._tokenizer.chat(request), request, "messages")
            return Plan(task=name, arm=BASE, model=BASE, body=body, prompt_tokens=count, saved_tokens=0)
        bare = strip(request["messages"], self._templates[name], self._known[name])
        if full_prompt or self._draw():
            plan = self._in_full(name, bare, body, asked=full_prompt)
            if plan is not None:
                return plan
        body["messages"] = bare
        count = self._fitting(self._tokenizer.chat(body), request, "messages")
        saved = self._tokenizer.chat(request) - count if bare is not request["messages"] else 0
        return Plan(task=name, arm=INTERNALIZED, model=name, body=body, prompt_tokens=count, saved_tokens=saved)

    def _in_full(self, name: str, bare: Chat, body: Mapping[str, Any], *, asked: bool) -> Plan | None:
        try:
            chat = self._full[name].chat(bare)
        except PilocalError as error:
            raise server_error(str(error)) from None
        if chat is None:
            self._refuse(asked, "the last message must be the user's")
            return None
        body = {**body, "messages": chat}
        count = self._tokenizer.chat(body)
        if asked:
            self._fitting(count, body, "messages")
        elif count >= self._context:
            return None
        return Plan(task=name, arm=FULL_PROMPT, model=BASE, body=body, prompt_tokens=count, saved_tokens=0)

    def _refuse(self, asked: bool, why: str) -> None:
        if asked:
            raise Refusal(400, f"X-Pilocal-Fallback: {why}.", code="no_full_prompt")

    def _fitting(self, count: int, request: Mapping[str, Any], param: str) -> int:
        """Return the count unless it leaves no room for an answer, in the words of OpenAI's refusal."""
        if count < self._context:
            return count
        most = request.get("max_tokens")
        wanted = f" and up to {most} for the completion" if most else ""
        message = f"This model's maximum context length is {self._context} tokens. However, your request has {count}"
        raise Refusal(400, f"{message} in the {param}{wanted}.", param=param, code="context_length_exceeded")
