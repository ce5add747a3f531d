"""The gate: how far what is served lies from what was trained, in nats per completion token.

The trained adapter is the reference, in the program that trained it: MLX, or PyTorch if there is no MLX. The distance
is the mean of KL(reference, served) over the completion tokens of held-out rows; what it would be without any adapter
says how much that is.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilocal.base.base import Base
from pilocal.base.reference import LoadReference, MlxReference
from pilocal.errors import ExportError
from pilocal.export.adapter import read_updates
from pilocal.export.lossless import nbytes, tensor_types
from pilocal.export.ship import Files
from pilocal.export.weights import BaseWeights
from pilocal.llamacpp.engine import Engine, divergence, log_softmax
from pilocal.progress import Progress, silent
from pilocal.prompt.tokens import Row
from pilocal.task import LOSSLESS

MOST = 0.1
"""The share of the distance without any adapter that a served file may have."""

CANDIDATES: Mapping[str, tuple[float, float, float]] = {
    "q4_k_m": (4.9, 5.5, 6.6),
    "q5_k_m": (5.7, 6.0, 6.6),
    "q6_k": (6.6, 8.5, 6.6),
    "q8_0": (8.5, 8.5, 8.5),
    "f16": (16.0, 16.0, 16.0),
}
"""The fused types that "auto" tries beside the lossless form, and their bits a weight: in a layer, in a layer's matrix
whose rows are not whole blocks of 256, for which llama.cpp takes another type, and in embeddings and output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What one form of the model loses."""

    kl: float
    """Mean KL divergence from the trained adapter, in nats per completion token."""
    kl_without: float
    """The same without any adapter."""
    tokens: int
    """Over how many tokens."""

    @property
    def passes(self) -> bool:
        """Whether it may be served."""
        return self.kl <= MOST * self.kl_without

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says of it."""
        return asdict(self) | {"passes": self.passes}


class Gate:
    """The reference's probabilities on held-out rows; make it with `open_gate`."""

    def __init__(self, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
        self._rows = rows
        self._folder = folder
        self._progress = progress
        self._without = 0.0

    def prepare(self, load: LoadReference, base: Base, adapter: Path) -> None:
        """Compute what the trained adapter says, and the base without it."""
        sums = 0.0
        for adapted in (adapter, None):
            model = load(base, adapted)
            for number, row in enumerate(self._rows):
                found = log_softmax(model.logits(row))
                if adapted:
                    np.save(self._file(number), found)
                else:
                    sums += divergence(np.load(self._file(number), allow_pickle=False), found)
                done = number + 1 + (0 if adapted else len(self._rows))
                self._progress("gate: reference", done, 2 * len(self._rows))
        self._without = sums / self._tokens

    def measure(self, files: Files) -> Loss:
        """Compare what llama.cpp makes of the files; raises ModelError when it refuses them."""
        longest = max(len(row.tokens) for row in self._rows)
        sums = 0.0
        with Engine(files.fused or files.base, longest, files.adapter) as engine:
            for number, row in enumerate(self._rows):
                found = row.pick(engine.log_probs(row.tokens[:-1], row.offset - 1))
                sums += divergence(np.load(self._file(number), allow_pickle=False), found)
                self._progress(f"gate: {files.quant}", number + 1, len(self._rows))
        return Loss(kl=sums / self._tokens, kl_without=self._without, tokens=self._tokens)

    @property
    def _tokens(self) -> int:
        return sum(len(row.completion) for row in self._rows)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.npy"


@contextmanager
def open_gate(
    base: Base,
    adapter: Path,
    rows: Sequence[Row],
    progress: Progress = silent,
    load: LoadReference = MlxReference,
) -> Iterator[Gate]:
    """Compute the reference on some rows; on disk, since a large vocabulary times many tokens is gigabytes.

    `load` loads the model in the program that trained it.
    """
    with tempfile.TemporaryDirectory(prefix="pilocal-gate-") as folder:
        gate = Gate(rows, Path(folder), progress)
        gate.prepare(load, base, adapter)
        yield gate


def candidates(base: Base, adapter: Path) -> list[str]:
    """Return the forms that "auto" tries, by the size that they should have, the smallest first."""
    weights, trained = BaseWeights(base), read_updates(adapter)
    types = {} if base.gguf else tensor_types(weights)
    sizes = dict.fromkeys(CANDIDATES, 0.0)
    exact = 16.0 * sum(each.lora_a.size + each.lora_b.size for each in trained.by_module.values())
    for name, shape in weights.shapes.items():
        count, odd = math.prod(shape), bool(shape[-1] % 256)
        exact += 8 * (base.gguf_weights.nbytes(name) if base.gguf else nbytes(weights, name, types[name]))
        for quant, bits in CANDIDATES.items():
            sizes[quant] += count * bits[odd if ".layers." in name else 2]
    if not trained.dora:
        sizes[LOSSLESS] = exact
    return sorted(sizes, key=lambda quant: sizes[quant])


def through(
    gate: Gate, quants: Sequence[str], write: Callable[[str], Files], *, accept_loss: bool
) -> tuple[Files, Loss]:
    """Write forms of the model, one after the other, until one passes, or the first if `accept_loss`; return it.

    What does not pass is deleted. Raises ExportError when none does.
    """
    for quant in quants:
        files = write(quant)
        loss = gate.measure(files)
        if loss.passes or accept_loss:
            return files, loss
        for path in files.own:
            path.unlink()
    what = f"{loss.kl:.2g} nats per token from the trained adapter, where none at all is {loss.kl_without:.2g} from it"
    fix = (
        'take [export] quant = "auto" or a wider type, train longer, or accept it ([export] accept_loss, --accept-loss)'
    )
    raise ExportError(f"export {quant}", f"refused: {what}", fix=fix)
