"""Asking one model: a list of prompts answered in MLX, or answered and timed in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.base.reference import LoadReference, MlxReference, ReferenceModel
from pilocal.llamacpp.batch_engine import BatchEngine
from pilocal.llamacpp.engine import Engine, divergence, log_softmax
from pilocal.llamacpp.model import Model
from pilocal.progress import Progress
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import Row, answer_text, common_prefix
from pilocal.task import Generation

COMPARED = 4
"""Prompts on whose answers both programs are compared before one answers for the other."""

CLOSE = 0.02
"""How far apart they may be then, in nats per token. llama.cpp rounds activations to 8 bits where weights are packed:
SmolLM2 in Q4_1 lies 0.004 from MLX, and a rounding of the weights themselves to 4 bits lies further."""


AT_ONCE = 8
"""Answers that llama.cpp computes together where no time is taken."""


@dataclass(frozen=True, slots=True)
class Same:
    """The very numbers of a backend's model in a GGUF file."""

    gguf: Path
    answers: list[str] | None = None
    """What llama.cpp answered from it, if it was asked already."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a model answered, and who for it."""

    answers: list[str]
    """One for each prompt."""
    llama_cpp_kl: float | None = None
    """Where llama.cpp answered for the backend: KL(backend, llama.cpp) in nats per token; None where it did not."""

    @property
    def facts(self) -> dict[str, float]:
        """What the results say of it."""
        return {} if self.llama_cpp_kl is None else {"llama_cpp_kl": self.llama_cpp_kl}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks a base, and what was made from it, within the task's limits: greedily unless a `sampling` is given."""

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
    ) -> Said:
        """Return the base's answers in the program that trains, with an adapter if one is given.

        A full prompt takes a CPU many seconds there, and llama.cpp one. So where there is no accelerator and `same` is
        the model in llama.cpp, the answers are llama.cpp's, provided that on the first COMPARED of them both programs'
        probabilities lie CLOSE to each other. Raises ModelError for damaged weights.
        """
        if same is not None and not self.accelerated and len(prompts) > COMPARED:
            said = self._in_llama(adapter, prompts, title, same)
            if said.llama_cpp_kl is not None and said.llama_cpp_kl <= CLOSE:
                return said
        return Said(self._in_backend(adapter, prompts, title))

    def _in_llama(self, adapter: Path | None, prompts: Sequence[Sequence[int]], title: str, same: Same) -> Said:
        """Return llama.cpp's answers, and how far it lies from the program that trains on the first of them."""
        with self.engine(same.gguf, prompts) as engine:
            answers = same.answers or self.in_llama(engine, prompts, title, warm=True)[0]
            pairs = zip(prompts[:COMPARED], answers, strict=False)
            rows = [self._row(prompt, answer) for prompt, answer in pairs]
            found = [engine.log_probs(row.tokens[:-1], row.offset - 1) for row in rows]
        model = self.load(self.base, adapter)
        sums = 0.0
        for number, (row, other) in enumerate(zip(rows, found, strict=True)):
            sums += divergence(log_softmax(model.logits(row)), other)
            self.progress(f"compare: {title}", number + 1, COMPARED)
        return Said(answers, sums / sum(len(row.completion) for row in rows))

    def _in_backend(self, adapter: Path | None, prompts: Sequence[Sequence[int]], title: str) -> list[str]:
        return self.answers_of(self.load(self.base, adapter), prompts, title)

    def answers_of(
        self, model: ReferenceModel, prompts: Sequence[Sequence[int]], title: str, sampling: Sampling | None = None
    ) -> list[str]:
        """Return the answers of a model that `load` has loaded."""
        completions = model.answer(
            prompts,
            ends=self.ends,
            max_tokens=self.generation.max_tokens,
            batch_size=self.generation.batch_size,
            progress=self.progress,
            name=title,
            sampling=sampling,
        )
        return [self._text(completion) for completion in completions]

    def _row(self, prompt: Sequence[int], answer: str) -> Row:
        """Return a prompt with its answer and an end of turn, no longer than what was asked for."""
        said = self.base.tokenizer.encode(answer, add_special_tokens=False)
        completion = [*said, min(self.ends)][: self.generation.max_tokens]
        return Row((*prompt, *completion), len(prompt))

    @contextmanager
    def engine(self, gguf: Path, prompts: Sequence[Sequence[int]], adapter: Path | None = None) -> Iterator[Engine]:
        """Open a GGUF file in llama.cpp for prompts of these lengths.

        Raises ModelError if llama.cpp refuses a file, RunError if there is not enough memory.
        """
        with Engine(gguf, max(map(len, prompts)) + self.generation.max_tokens + 1, adapter) as engine:
            yield engine

    def in_llama(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        title: str,
        *,
        warm: bool = False,
        sampling: Sampling | None = None,
    ) -> tuple[list[str], dict[str, float]]:
        """Return the answers in llama.cpp, and the medians ttft_ms and latency_ms, in milliseconds."""
        how: dict[str, Any] = {"ends": self.ends, "max_tokens": self.generation.max_tokens, "sampling": sampling}
        timed = engine.answer(prompts, warm=warm, progress=self.progress, name=title, **how)
        times = {"ttft_ms": timed.ttft_ms, "latency_ms": timed.latency_ms}
        return [self._text(completion) for completion in timed.answers], times

    def in_batches(self, gguf: Path, prompts: Sequence[Sequence[int]], title: str) -> list[str]:
        """Return a GGUF file's answers in llama.cpp, AT_ONCE of them together, which takes a CPU half the time.

        Sums are rounded otherwise than one at a time, so that an answer may differ where two tokens are as likely. What
        all prompts begin with is read once. Raises as `engine` does.
        """
        prefix, most = common_prefix(prompts), self.generation.max_tokens
        longest = max(map(len, prompts)) + most + 1
        clients = min(AT_ONCE, len(prompts))
        with Model(gguf) as model, BatchEngine(model, clients=clients, longest=longest, prefix=prefix) as engine:
            done = partial(self.progress, title, total=len(prompts))
            answered, _ = engine.answer(prompts, ends=self.ends, max_tokens=most, done=done)
        return [self._text(each.tokens) for each in answered]

    def times(self, engine: Engine, prompts: Sequence[Sequence[int]], title: str) -> dict[str, float]:
        """Return those medians for the first `timed_requests` prompts."""
        return self.in_llama(engine, prompts[: self.generation.timed_requests], f"time: {title}")[1]

    def _text(self, completion: Sequence[int]) -> str:
        return answer_text(completion, self.base.tokenizer)
