"""The prompted self: the base without an adapter, with the whole template, answers what is to be learned."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from pilocal.base.reference import ReferenceModel
from pilocal.errors import InputError
from pilocal.evaluate.asking import Asker
from pilocal.prompt.render import render
from pilocal.prompt.sampling import Pick
from pilocal.prompt.tokens import prompt_tokens, token_counter
from pilocal.task import Example

CHUNK = 64
"""Queries that are answered together; the same ones however often the work is interrupted."""

LONGEST = 16
"""Queries of most characters, among which the one of most tokens is looked for."""

Draws = Callable[[Sequence[str]], list[Pick]]
"""What chooses the tokens of the answer to each of some queries; nothing for greedy answers."""


def greedy(queries: Sequence[str]) -> list[Pick]:
    """Return nothing."""
    return []


EMPTY, CUT = "the answer is empty", "the answer is cut off at [generation] max_tokens"
"""Why an answer is not learned from."""


class Teacher:
    """Answers queries with the template."""

    def __init__(
        self, asker: Asker, template: str, gguf: Path | None, title: str = "answers", draw: Draws = greedy
    ) -> None:
        """Take who answers; with `gguf`, the file of the base, llama.cpp does. `title` is what progress is called.

        `draw` says what chooses the tokens of each query's answer.
        """
        self._asker, self._title = asker, title
        self._template, self._draw = template, draw
        self._gguf = gguf
        self._count = token_counter(asker.base.tokenizer)

    @cached_property
    def _model(self) -> ReferenceModel:
        return self._asker.load(self._asker.base, None)

    def answer(self, queries: Sequence[str]) -> list[str]:
        """Return the answers to at most CHUNK queries; raises ModelError for damaged weights."""
        return self._answer([self._template] * len(queries), queries, self._draw(queries))

    def answer_after(self, templates: Sequence[str], queries: Sequence[str]) -> list[str]:
        """Return the greedy answers to queries, each after a template of its own; raises as `answer` does."""
        return self._answer(templates, queries, []) if queries else []

    def check(self, queries: Sequence[str], where: object) -> None:
        """Raise InputError if the longest prompt of all with its answer is longer than the base's context."""
        longest = heapq.nlargest(LONGEST, queries, key=len)
        self._prompts([self._template] * len(longest), longest, where)

    def _prompts(self, templates: Sequence[str], queries: Sequence[str], where: object) -> list[list[int]]:
        base, answer = self._asker.base, self._asker.generation.max_tokens
        asked = [Example(id="", query=query, answer="") for query in queries]
        records = [render(template, [], one) for template, one in zip(templates, asked, strict=True)]
        prompts = [prompt_tokens(record["messages"][:-1], base.tokenizer) for record in records]
        longest = max(map(len, prompts), default=0)
        if (over := longest + answer - base.context) > 0:
            what = f"a prompt of {longest} tokens, with {answer} for its answer, is {over} over the context of "
            what += f"{base.context} tokens of {base.model}"
            fix = "shorten the template, lower [generation] max_tokens, or take a model with a longer context"
            raise InputError(where, what, fix=fix)
        return prompts

    def _answer(self, templates: Sequence[str], queries: Sequence[str], picks: Sequence[Pick]) -> list[str]:
        prompts = self._prompts(templates, queries, f"synth, {self._title}")
        if self._gguf is None:
            return self._asker.answers_of(self._model, prompts, self._title, picks)
        if not picks:
            return self._asker.in_batches(self._gguf, prompts, self._title)
        with self._asker.engine(self._gguf, prompts) as engine:  # a new one, so that nothing depends on former chunks
            return self._asker.in_llama(engine, prompts, self._title, warm=True, picks=picks)[0]

    def objection(self, answer: str) -> str | None:
        """Return why an answer is not to be learned, or None."""
        if not answer.strip():
            return EMPTY
        return CUT if self._count(answer) >= self._asker.generation.max_tokens else None
