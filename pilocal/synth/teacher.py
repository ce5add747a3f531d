"""The prompted self: the base without an adapter, with the whole template, answers what is to be learned."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pilocal.base.reference import ReferenceModel
from pilocal.errors import InputError
from pilocal.evaluate.asking import Asker
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import prompt_tokens, token_counter

CHUNK = 64
"""Queries that are answered together; the same ones however often the work is interrupted."""

LONGEST = 16
"""Queries of most characters, among which the one of most tokens is looked for."""

EMPTY, CUT = "the answer is empty", "the answer is cut off at [generation] max_tokens"
"""Why an answer is not learned from."""


class Teacher:
    """Answers queries with the template, greedily unless it is told otherwise."""

    def __init__(self, asker: Asker, template: str, gguf: Path | None, title: str = "answers") -> None:
        """Take who answers; with `gguf`, the file of the base, llama.cpp does. `title` is what progress is called."""
        self._asker, self._title = asker, title
        self._template = template
        self._gguf = gguf
        self._count = token_counter(asker.base.tokenizer)

    @cached_property
    def _model(self) -> ReferenceModel:
        return self._asker.load(self._asker.base, None)

    def answer(self, queries: Sequence[str]) -> list[str]:
        """Return the answers to at most CHUNK queries; raises as `reply` does."""
        return self.reply(asking(queries))

    def reply(self, chats: Sequence[Sequence[Message]], sampling: Sampling | None = None) -> list[str]:
        """Return what comes next in at most CHUNK chats behind the template.

        Raises InputError where a chat leaves the base's context, ModelError for damaged weights.
        """
        return self._say([self._prompt(chat) for chat in chats], sampling)

    def usable(self, chats: Sequence[Sequence[Message]], sampling: Sampling | None = None) -> list[str | None]:
        """Return what comes next in each chat; None where that is not to be learned or leaves the base's context."""
        room = self._asker.base.context - self._asker.generation.max_tokens
        fitting = [number for number, chat in enumerate(chats) if len(self._prompt(chat)) <= room]
        said = self.reply([chats[number] for number in fitting], sampling) if fitting else []
        found = {number: None if self.objection(text) else text for number, text in zip(fitting, said, strict=True)}
        return [found.get(number) for number in range(len(chats))]

    def answer_after(
        self, templates: Sequence[str], queries: Sequence[str], sampling: Sampling | None = None
    ) -> list[str]:
        """Return the answers to at most CHUNK queries, each after a template of its own; raises as `reply` does."""
        pairs = zip(templates, asking(queries), strict=True)
        return self._say([self._prompt(chat, template) for template, chat in pairs], sampling) if queries else []

    def check(self, queries: Sequence[str], where: object) -> None:
        """Raise InputError if the longest prompt of all with its answer is longer than the base's context."""
        longest = heapq.nlargest(LONGEST, queries, key=len)
        self._check([self._prompt(chat) for chat in asking(longest)], where)

    def _prompt(self, chat: Sequence[Message], template: str | None = None) -> list[int]:
        text = self._template if template is None else template
        system = [Message(role="system", content=text)] if text.strip() else []
        return prompt_tokens([*system, *chat], self._asker.base.tokenizer)

    def _check(self, prompts: Sequence[Sequence[int]], where: object) -> None:
        base, answer, longest = self._asker.base, self._asker.generation.max_tokens, max(map(len, prompts))
        if (over := longest + answer - base.context) > 0:
            what = f"a prompt of {longest} tokens, with {answer} for its answer, is {over} over the context of "
            what += f"{base.context} tokens of {base.model}"
            fix = "shorten the template, lower [generation] max_tokens, or take a model with a longer context"
            raise InputError(where, what, fix=fix)

    def _say(self, prompts: Sequence[Sequence[int]], sampling: Sampling | None) -> list[str]:
        self._check(prompts, f"synth, {self._title}")
        if self._gguf is None:
            return self._asker.answers_of(self._model, prompts, self._title, sampling)
        if sampling is None:
            return self._asker.in_batches(self._gguf, prompts, self._title)
        with self._asker.engine(self._gguf, prompts) as engine:  # a new one, so that nothing depends on former chunks
            return self._asker.in_llama(engine, prompts, self._title, warm=True, sampling=sampling)[0]

    def objection(self, answer: str) -> str | None:
        """Return why an answer is not to be learned, or None."""
        if not answer.strip():
            return EMPTY
        return CUT if self._count(answer) >= self._asker.generation.max_tokens else None


def asking(queries: Sequence[str]) -> list[list[Message]]:
    """Return the chat that each query begins."""
    return [[Message(role="user", content=query)] for query in queries]
