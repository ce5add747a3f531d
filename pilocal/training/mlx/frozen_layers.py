"""What lies below the adapter: computed once a stage, since no step of the training changes it.

Where only the last layers are adapted, the hidden states that enter the first of them are a function of the tokens
alone. Those of what all rows begin with are computed once, those of each row when it is first met; they are kept as
long as memory allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from pilocal.base.device import machine_memory
from pilocal.training.memory import free_share
from pilocal.training.mlx.batches import Batch
from pilocal.training.mlx.forward import Past, behind, embedded, run_layer, takes_tokens, windows


def first_adapted(model: Any) -> int:
    """Return the number of the lowest layer that is trained, or 0 when nothing below it can be kept."""
    if takes_tokens(model.model):
        return 0
    return next((i for i, layer in enumerate(model.layers) if tree_flatten(layer.trainable_parameters())), 0)


class Below:
    """Turns a batch's tokens into the hidden states (T, D) that enter layer `first`; leaves them tokens when it is 0.

    A row is always computed alone, so that its numbers do not depend on its neighbours or on what was kept.
    """

    def __init__(self, model: Any, first: int, prefix: Sequence[int], room: int | None = None) -> None:
        """Run the tokens that all rows begin with; `room` is in bytes, a share of what is free now if None."""
        self.model, self.first = model, first
        self.room = free_share(machine_memory(), mx.get_active_memory()) if room is None else room
        self.pasts: list[Past | None]
        self.kept: dict[tuple[int, ...], mx.array] = {}
        self.prefix_PD, self.pasts = mx.array([]), [None] * first
        if first and len(prefix):
            self.prefix_PD, self.pasts = self._run(prefix)
            mx.eval(self.prefix_PD, [past[:2] for past in self.pasts if past])

    def arrays(self, batch: Batch) -> tuple[mx.array, ...]:
        """Return the batch as `loss.completion_loss` takes it with this `first`."""
        if not self.first:
            return batch.arrays()
        shared = batch.shots_GS.shape[1]
        hidden = [self._row(row.tokens[batch.prefix_P.size : -1]) for row in batch.rows]
        width = batch.tokens_BT.shape[1]
        own_BTD = mx.stack([mx.pad(row[shared:], [(0, width + shared - len(row)), (0, 0)]) for row in hidden])
        groups = batch.groups_B.tolist()
        shots_GSD = mx.stack([hidden[groups.index(g)][:shared] for g in range(len(batch.shots_GS))]) if groups else None
        _, shots, groups_B, _, *rest = batch.arrays()
        return self.prefix_PD, shots if shots_GSD is None else shots_GSD, groups_B, own_BTD, *rest

    def _row(self, tokens: tuple[int, ...]) -> mx.array:
        """Return the hidden states (T, D) of what a row has behind the prefix."""
        if (kept := self.kept.get(tokens)) is not None:
            return kept
        hidden_TD, _ = self._run(tokens)
        mx.eval(hidden_TD)
        if hidden_TD.nbytes <= self.room:
            self.room -= hidden_TD.nbytes
            self.kept[tokens] = hidden_TD
        return hidden_TD

    def _run(self, tokens: Sequence[int]) -> tuple[mx.array, list[Past | None]]:
        """Run tokens behind the prefix; return their hidden states (T, D) and what each layer has behind them."""
        inner = self.model.model
        hidden_1TD = embedded(inner, mx.array(list(tokens))[None])
        found: list[Past | None] = []
        for layer, window, past in zip(inner.layers, windows(inner), self.pasts, strict=False):
            hidden_1TD, own = run_layer(layer, hidden_1TD, past, window)
            found.append(behind(past, own, window))
        return hidden_1TD[0], found
