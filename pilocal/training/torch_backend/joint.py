"""Models that a sharded base makes all processes compute with: the leader is asked, and the others take part.

Every process makes the same passes with the same rows, and only the leader's results are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pilocal.progress import Progress, silent
from pilocal.prompt.soft import Soft
from pilocal.prompt.tokens import Row
from pilocal.run_folder.hashes import fingerprint
from pilocal.training.team import Kind, Order

if TYPE_CHECKING:
    from pilocal.training.torch_backend.setup import Setup

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Call:
    """What all processes do at the same time."""

    model: str
    """SHA-256 of what it is asked of."""
    teaches: bool
    """Whether that is a TorchTeacher, or a TorchReference."""
    weights: str
    """How it holds the base, one of `pilocal.training.backend.WEIGHTS`."""
    method: str
    given: tuple[Any, ...]
    how: Mapping[str, Any]


class Joint:
    """A TorchTeacher or a TorchReference that all processes compute; only a team's leader has one."""

    def __init__(self, setup: Setup, *, teaches: bool, adapter: Mapping[str, Floats] | None = None) -> None:
        """Load nothing yet; `adapter` is the model's, None for the base as it is."""
        self._setup, self._teaches, self._adapter = setup, teaches, adapter
        floats = [(name, sha256(value.tobytes()).hexdigest()) for name, value in (adapter or {}).items()]
        self._model = fingerprint(teaches, *setup.same().items(), adapter is None, *floats)

    def says(self, rows: Sequence[Row]) -> list[Soft]:
        """Return what `TorchTeacher.says` does."""
        found: list[Soft] = self._call("says", rows)
        return found

    def losses(self, rows: Sequence[Row]) -> list[Floats]:
        """Return what `TorchTeacher.losses` does."""
        found: list[Floats] = self._call("losses", rows)
        return found

    def logits(self, row: Row) -> Floats:
        """Return what `TorchReference.logits` does."""
        found: Floats = self._call("logits", row)
        return found

    def answer(self, prompts: Sequence[Sequence[int]], *, progress: Progress, **how: Any) -> list[list[int]]:
        """Return what `TorchReference.answer` does."""
        found: list[list[int]] = self._call("answer", prompts, progress=progress, **how)
        return found

    def _call(self, method: str, *given: Any, progress: Progress | None = None, **how: Any) -> Any:
        call = Call(self._model, self._teaches, self._setup.asked_weights, method, given, how)
        with self._setup.team.order(Order(Kind.HELP)):
            self._setup.team.share(call)
            return carry_out(self._setup, call, self._adapter, progress)


def carry_out(
    setup: Setup, call: Call, adapter: Mapping[str, Floats] | None = None, progress: Progress | None = None
) -> Any:
    """Do what all processes do at the same time, with the model of the last call where that is the same one.

    The leader gives the `adapter`. Raises TrainingError where processes do not agree, or one is gone.
    """
    team = setup.team
    if team.joint[0] != call.model:
        setup.agree()
        team.joint = call.model, setup.loaded(team.share(adapter), call.weights, teaches=call.teaches)
    how = dict(call.how)
    if call.method == "answer":
        how["progress"] = progress or silent
    with team.computing():
        return getattr(team.joint[1], call.method)(*call.given, **how)
