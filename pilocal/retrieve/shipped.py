"""Shots for what is served: chosen as in the evaluation, from the examples that were shipped."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pilocal.retrieve.shots import ShotPicker
from pilocal.run_folder.shipped import Shipped
from pilocal.task import Example


class ShippedShots:
    """Returns so many shots for a query, least similar first; safe to call from several threads.

    Raises InputError when the model that compares queries cannot be loaded.
    """

    def __init__(self, shipped: Shipped, examples: Sequence[Example]) -> None:
        self._shipped = shipped
        self._examples = tuple(examples)
        self._picker: ShotPicker | None = None
        self._lock = threading.Lock()

    def __call__(self, asked: Example, count: int) -> list[Example]:
        """Return the shots for a query with its earlier turns."""
        with self._lock:
            if self._picker is None:
                where, config = self._shipped.folder, self._shipped.retrieval
                k, seed = self._shipped.shots, self._shipped.seed
                self._picker = ShotPicker(self._examples, config, None, k=k, seed=seed, where=where, models=where)
            return [self._examples[i] for i in self._picker.for_query(asked.query, count, asked.history)]
