"""`[export]` in task.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pilocal.task.toml import require
from pilocal.task.within import Within, within

LOSSLESS = "lossless"
"""The form that loses nothing: the base, number for number, the adapter beside it."""

AUTO = "auto"
"""The smallest type that passes the gate."""

STRONGEST = 2.0
"""The largest strength of an adapter; 1 is as trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`[export]`: what is shipped."""

    quant: str = "lossless"
    """What is served: "lossless" (the base, number for number, the adapter beside it), a llama.cpp type into which both
    are fused ("f16", "q8_0", "q4_k_m", ...), or "auto": the smallest type that passes the gate."""
    gate_rows: Annotated[int, Within(1, 1_000_000)] = 64
    """Validation rows on which the gate compares the served files with the trained adapter."""
    accept_loss: bool = False
    """Ship what a gate refuses: files that lose more than a tenth of what the adapter adds, or forget too much."""
    strength: Annotated[float | str, Within(0, STRONGEST, above=True, otherwise=f', or "{AUTO}"')] = 1.0
    """How much of what was trained is evaluated and shipped, from above 0 to 2. A weaker adapter disturbs less of what
    the base knew. With "auto" it is lowered from 1 by tenths, to 0.5 at least, while the score of `gate_rows`
    validation rows stays. Not for DoRA."""
    retention: Annotated[float | None, Within(0, 100, above=True, otherwise="; leave it out for no limit")] = None
    """How far an adapter may lie from the base on unrelated prompts, in nats per token, such as 0.1. An adapter that
    lies further is not exported. By default it is measured only; see [evaluation] unrelated."""

    def __post_init__(self) -> None:
        require(
            *within(self),
            (bool(self.quant.strip()), "quant", "must not be empty"),
            (not isinstance(self.strength, str) or self.strength == AUTO, "strength", f'must be a number or "{AUTO}"'),
        )
