"""Asking one model: a list of prompts answered in MLX, or answered and timed in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pilocal.base.base import Base
from pilocal.base.reference import LoadReference, MlxReference
from pilocal.llamacpp.engine import Engine
from pilocal.progress import Progress
from pilocal.prompt.tokens import answer_text
from pilocal.task import Generation

COMPARED = 4
"""Prompts that both programs answer before llama.cpp answers the rest."""


@dataclass(frozen=True, slots=True)
class Same:
    """The very numbers of a backend's model in a GGUF file."""

    gguf: Path
    answers: list[str] | None = None
    """What llama.cpp answered from it, if it was asked already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks a base, and what was made from it, always greedily and within the task's limits."""

    base: Base
    ends: frozenset[int]
    """The ids that end an answer."""
    generation: Generation
    progress: Progress
    load: LoadReference = MlxReference
    """Loads the base in the program that trains."""
    accelerated: bool = True
    """Whether that has an accelerator."""

    def in_backend(
        self, adapter: Path | None, prompts: Sequence[Sequence[int]], title: str, same: Same | None = None
    ) -> list[str]:
        """Return the base's answers in the program that trains, with an adapter if one is given.

        A full prompt takes a CPU many seconds there, and llama.cpp one. So the answers are llama.cpp's where there is
        no accelerator, `same` is the model in llama.cpp, and both programs answer the first COMPARED prompts alike.
        Raises ModelError for damaged weights.
        """
        if same is None or self.accelerated or len(prompts) <= COMPARED:
            return self._in_backend(adapter, prompts, title)
        first = self._in_backend(adapter, prompts[:COMPARED], title)
        answers = same.answers or self._in_llama(same.gguf, prompts, title)
        if answers[:COMPARED] == first:
            return answers
        return first + self._in_backend(adapter, prompts[COMPARED:], title)

    def _in_llama(self, gguf: Path, prompts: Sequence[Sequence[int]], title: str) -> list[str]:
        with self.engine(gguf, prompts) as engine:
            return self.in_llama(engine, prompts, title, warm=True)[0]

    def _in_backend(self, adapter: Path | None, prompts: Sequence[Sequence[int]], title: str) -> list[str]:
        completions = self.load(self.base, adapter).answer(
            prompts,
            ends=self.ends,
            max_tokens=self.generation.max_tokens,
            batch_size=self.generation.batch_size,
            progress=self.progress,
            name=title,
        )
        return [self._text(completion) for completion in completions]

    @contextmanager
    def engine(self, gguf: Path, prompts: Sequence[Sequence[int]], adapter: Path | None = None) -> Iterator[Engine]:
        """Open a GGUF file in llama.cpp for prompts of these lengths.

        Raises ModelError if llama.cpp refuses a file, RunError if there is not enough memory.
        """
        with Engine(gguf, max(map(len, prompts)) + self.generation.max_tokens + 1, adapter) as engine:
            yield engine

    def in_llama(
        self, engine: Engine, prompts: Sequence[Sequence[int]], title: str, *, warm: bool = False
    ) -> tuple[list[str], dict[str, float]]:
        """Return the answers in llama.cpp, and the medians ttft_ms and latency_ms, in milliseconds."""
        most = self.generation.max_tokens
        timed = engine.answer(prompts, ends=self.ends, max_tokens=most, warm=warm, progress=self.progress, name=title)
        times = {"ttft_ms": timed.ttft_ms, "latency_ms": timed.latency_ms}
        return [self._text(completion) for completion in timed.answers], times

    def times(self, engine: Engine, prompts: Sequence[Sequence[int]], title: str) -> dict[str, float]:
        """Return those medians for the first `timed_requests` prompts."""
        return self.in_llama(engine, prompts[: self.generation.timed_requests], f"time: {title}")[1]

    def _text(self, completion: Sequence[int]) -> str:
        return answer_text(completion, self.base.tokenizer)
