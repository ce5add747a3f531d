"""The prompted self: the base without an adapter, with the whole template, answers what is to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pilocal.base.reference import ReferenceModel
from pilocal.evaluate.asking import Asker
from pilocal.prompt.render import Message
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import prompt_tokens, token_counter

CHUNK = 64
"""Queries that are answered together; the same ones however often the work is interrupted."""

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
        """Return the answers to at most CHUNK queries; raises ModelError for damaged weights."""
        return self.reply([[Message(role="user", content=query)] for query in queries])

    def reply(self, chats: Sequence[Sequence[Message]], sampling: Sampling | None = None) -> list[str]:
        """Return what comes next in at most CHUNK chats behind the template; raises ModelError for damaged weights."""
        prompts = [self._prompt(chat) for chat in chats]
        if self._gguf is None:
            return self._asker.answers_of(self._model, prompts, self._title, sampling)
        with self._asker.engine(self._gguf, prompts) as engine:  # a new one, so that nothing depends on former chunks
            return self._asker.in_llama(engine, prompts, self._title, warm=True, sampling=sampling)[0]

    def usable(self, chats: Sequence[Sequence[Message]]) -> list[str | None]:
        """Return what comes next in each chat; None where that is not to be learned or leaves the base's context."""
        room = self._asker.base.context - self._asker.generation.max_tokens
        fitting = [number for number, chat in enumerate(chats) if len(self._prompt(chat)) <= room]
        said = self.reply([chats[number] for number in fitting]) if fitting else []
        found = {number: None if self.objection(text) else text for number, text in zip(fitting, said, strict=True)}
        return [found.get(number) for number in range(len(chats))]

    def _prompt(self, chat: Sequence[Message]) -> list[int]:
        system = [Message(role="system", content=self._template)] if self._template.strip() else []
        return prompt_tokens([*system, *chat], self._asker.base.tokenizer)

    def objection(self, answer: str) -> str | None:
        """Return why an answer is not to be learned, or None."""
        if not answer.strip():
            return EMPTY
        return CUT if self._count(answer) >= self._asker.generation.max_tokens else None
