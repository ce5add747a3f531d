"""Every task's weights in memory: one base with an adapter for each task, and fused files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pilocal.llamacpp.grammar import Vocabulary
from pilocal.llamacpp.model import Model, load_adapter
from pilocal.llamacpp.scheduler import BASE as NO_ADAPTER
from pilocal.llamacpp.scheduler import Scheduler
from pilocal.llamacpp.sequences import Weights
from pilocal.llamacpp.tokenizer import Tokenizer
from pilocal.run_folder.shipped import BARE_BASE as BASE
from pilocal.run_folder.shipped import Shipped
from pilocal.server.embeddings import Embeddings
from pilocal.server.options import ServeOptions

MIB = 2**20

MOST = 8
"""Contexts whose keys and values an engine keeps at the most: more would be room that is not needed."""

KEPT = 32
"""Sequences that are kept beside those that are being answered."""


class Engines:
    """The engine of the base, which all adapters share, and one for each fused file; a context manager."""

    def __init__(self, base: Path, tasks: Sequence[Shipped], options: ServeOptions) -> None:
        """Load the tasks' files; raises ModelError when llama.cpp refuses one, RunError where memory is missing."""
        self._names = (*(task.name for task in tasks), BASE)
        self._adapted = {task.name for task in tasks if task.adapter_path}
        self._vocabularies: dict[str, Vocabulary] = {}
        self._stack = ExitStack()
        try:
            model = self._stack.enter_context(Model(base))
            self.tokenizer: Tokenizer = model.tokenizer
            adapters = {task.name: load_adapter(model.handle, task.adapter_path) for task in tasks if task.adapter_path}
            self._base = self._open(model, adapters, options)
            self.embeddings = self._stack.enter_context(Embeddings(model, options.context, options.threads))
            """Those of the base."""
            self._fused = {
                task.name: self._open(self._stack.enter_context(Model(task.folder / task.fused)), {}, options)
                for task in tasks
                if task.fused
            }
        except BaseException:
            self._stack.close()
            raise

    def _open(self, model: Model, adapters: dict[str, object], options: ServeOptions) -> Scheduler:
        room = options.cache * MIB // model.kv_bytes
        tokens = max(options.context, min(room, MOST * options.context))
        clients, kept = (1, 0) if options.exact else (options.parallel, KEPT)
        scheduler = Scheduler(model, adapters, tokens=tokens, clients=clients, kept=kept, threads=options.threads)
        return self._stack.enter_context(scheduler)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, the bare base last."""
        return iter(self._names)

    def all(self) -> dict[str, Scheduler]:
        """Return the engines: that of the base, and those of fused files by the names of their tasks."""
        return {BASE: self._base, **self._fused}

    def vocabulary(self, name: str) -> Vocabulary:
        """Return the vocabulary with which the engine of a task keeps answers within a grammar; slow the first time."""
        owner = name if name in self._fused else BASE
        if owner not in self._vocabularies:
            self._vocabularies[owner] = Vocabulary.of(self.tokenizer)
        return self._vocabularies[owner]

    def shown(self, texts: Iterable[str]) -> dict[int, bytes]:
        """Return those of some texts that are one control token, which an answer's text leaves out otherwise."""
        cut = {text: self.tokenizer.tokens(text, special=True) for text in texts}
        return {
            tokens[0]: text.encode()
            for text, tokens in cut.items()
            if len(tokens) == 1 and not self.tokenizer.text(tokens)
        }

    def find(self, name: str, strength: float) -> tuple[Scheduler, Weights]:
        """Return the engine that has a task's weights, or the base's, and which of its weights they are."""
        if name in self._fused:
            return self._fused[name], NO_ADAPTER
        return self._base, (name, strength) if name in self._adapted else NO_ADAPTER

    def close(self) -> None:
        """Free all weights."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
