"""A trained adapter, weaker, stronger, or shuffled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pilocal.comparison.arms import ComparedArm
from pilocal.run_folder.adapter import Adapter, read_adapter


@contextmanager
def changed(adapter: Path, arm: ComparedArm, seed: int) -> Iterator[Path]:
    """Yield the folder of the adapter that an arm asks for; a changed one is deleted afterwards.

    Raises InputError when the adapter is damaged.
    """
    if arm.strength == 1 and not arm.shuffled:
        yield adapter
        return
    whole = read_adapter(adapter)
    with tempfile.TemporaryDirectory(prefix="pilocal-adapter-") as folder:
        (shuffle(whole, seed) if arm.shuffled else whole.weighed(arm.strength)).write(Path(folder))
        yield Path(folder)


def shuffle(adapter: Adapter, seed: int) -> Adapter:
    """Return an adapter with the same numbers in every tensor, in an order that the seed draws."""
    draw = np.random.default_rng(seed)
    weights = {
        name: draw.permutation(value.ravel()).reshape(value.shape) for name, value in sorted(adapter.tensors.items())
    }
    return replace(adapter, tensors=weights)
