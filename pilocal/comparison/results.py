"""What one arm gave with one seed, on disk as soon as it is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.typed import made


@dataclass(slots=True, kw_only=True)
class Result:
    """One arm with one seed, trained on `examples` of the training examples, or on all of them if None."""

    arm: str
    seed: int | None
    """None for an arm without training."""
    examples: int | None = None
    rate: float | None = None
    """The share of the template that an adapter was asked with; None for what every request has."""
    key: str
    """A fingerprint of everything that decides the answers."""
    answers: list[str]
    """One per test query."""
    prompt_tokens: float
    """Mean over the test queries."""
    marks: list[list[float]] = field(default_factory=list)
    """The metric's marks (N, S); empty until the answers are scored."""
    marks_key: str = ""
    """A fingerprint of the metric and its settings."""
    times: dict[str, float] = field(default_factory=dict)
    """ttft_ms and latency_ms, medians in llama.cpp, if it was timed; llama_cpp_kl if llama.cpp answered for MLX."""
    training: dict[str, Any] = field(default_factory=dict)
    """tokens (of the rendered rows), computed_tokens, seconds, and ends (the step after which each stage ended)."""

    @property
    def name(self) -> str:
        """The name of its file and of its run folder."""
        return result_name(self.arm, self.seed, self.examples, self.rate)

    @property
    def marks_NS(self) -> NDArray[np.float64]:
        """The marks as an array."""
        return np.array(self.marks, dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all; raises RunError if the disk is full."""
        write_json(folder / f"{self.name}.json", asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is left of the template at a rate."""

    rate: float
    text: str
    tokens: int


def result_name(arm: str, seed: int | None, examples: int | None, rate: float | None = None) -> str:
    """Return the name of a result.

    >>> result_name("linear", 1, 50), result_name("linear", 0, None, 0.05)
    ('linear-seed1-of50', 'linear-seed0-at0.05')
    """
    parts = (("-seed", seed), ("-of", examples), ("-at", rate))
    return arm + "".join(f"{name}{value}" for name, value in parts if value is not None)


def read_result(folder: Path, name: str, key: str) -> Result | None:
    """Return a result that was saved with this key, or None; raises RunError if its file is damaged."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        result = made(Result, read_json(path))
    except MISSHAPEN as error:
        raise RunError(path, f"damaged: {error}", fix="delete this file; the arm is answered again") from None
    return result if result.key == key else None
