"""Answers of the base, with an adapter or without, to requests: kept some at a time, and never asked for twice.

Where there is no accelerator, llama.cpp answers for a base that is a GGUF file: it takes a CPU a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pilocal.base.reference import ReferenceModel
from pilocal.evaluate.asking import Asker
from pilocal.flow.context import Context
from pilocal.flow.references import has_accelerator, reference_loader
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json

CHUNK = 64
"""Prompts that are answered together; the same ones however often the work is interrupted."""


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Greedy answers in the folder of a step, made for its `key`."""

    context: Context
    folder: Path
    key: str
    title: str
    """What the progress is called."""
    max_tokens: int
    adapter: Path | None = None
    """The folder of the adapter; None for the base as it is."""

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the answer to each prompt; raises ModelError for damaged weights, RunError if the disk is full."""
        found = list[str]()
        for begin in range(0, len(prompts), CHUNK):
            some, path = prompts[begin : begin + CHUNK], self._path(begin)
            said = self._kept(path, len(some))
            if said is None:
                said = self._say(some, self._asker(begin, len(prompts)))
                write_json(path, {"key": self.key, "answers": said})
            found += said
            self.context.progress(self.title, len(found), len(prompts))
        return found

    def files(self, count: int) -> list[Path]:
        """Return the files of so many answers."""
        return [self._path(begin) for begin in range(0, count, CHUNK)]

    def _path(self, begin: int) -> Path:
        return self.folder / "answers" / f"{begin // CHUNK:05}.json"

    def _kept(self, path: Path, count: int) -> list[str] | None:
        """Return what a file holds; None where it is not there, damaged, or of another key."""
        try:
            kept = read_json(path)
            said = [str(answer) for answer in kept["answers"]] if kept["key"] == self.key else []
        except MISSHAPEN:
            return None
        return said if len(said) == count else None

    def _say(self, prompts: Sequence[Sequence[int]], asker: Asker) -> list[str]:
        gguf = self.context.base.gguf
        if gguf is not None and self.adapter is None and not asker.accelerated:
            return asker.in_batches(gguf, prompts, self.title)
        return asker.answers_of(self._model, prompts, self.title)

    @cached_property
    def _model(self) -> ReferenceModel:
        return reference_loader(self.context)(self.context.base, self.adapter)

    def _asker(self, begin: int, count: int) -> Asker:
        """Return what asks, and counts the answers from `begin` on, of `count`."""
        context = self.context

        def show(what: str, done: int, total: int, note: str = "") -> None:
            context.progress(what, begin + done, count, note)

        return Asker(
            base=context.base,
            ends=end_tokens(context.base.tokenizer),
            generation=replace(context.task.generation, max_tokens=self.max_tokens),
            progress=show,
            accelerated=has_accelerator(context),
        )
