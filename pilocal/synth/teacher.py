"""The prompted self: the base without an adapter, with the whole template, answers what is to be learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pilocal.base.reference import ReferenceModel
from pilocal.evaluate.asking import Asker
from pilocal.prompt.render import render
from pilocal.prompt.tokens import prompt_tokens, token_counter
from pilocal.task import Example

CHUNK = 64
"""Queries that are answered together; the same ones however often the work is interrupted."""

EMPTY, CUT = "the answer is empty", "the answer is cut off at [generation] max_tokens"
"""Why an answer is not learned from."""


class Teacher:
    """Answers queries with the template, greedily."""

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
        tokenizer = self._asker.base.tokenizer
        asked = [Example(id="", query=query, answer="") for query in queries]
        prompts = [prompt_tokens(render(self._template, [], one)["messages"][:-1], tokenizer) for one in asked]
        if self._gguf is None:
            return self._asker.answers_of(self._model, prompts, self._title)
        with self._asker.engine(self._gguf, prompts) as engine:  # a new one, so that nothing depends on former chunks
            return self._asker.in_llama(engine, prompts, self._title, warm=True)[0]

    def objection(self, answer: str) -> str | None:
        """Return why an answer is not to be learned, or None."""
        if not answer.strip():
            return EMPTY
        return CUT if self._count(answer) >= self._asker.generation.max_tokens else None
