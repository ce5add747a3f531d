"""What every format writes: one folder per trained stage, and the order in which to train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Record
from pilocal.run_folder.files import replacing, write_json

LAST = "the last stage's valid.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSet:
    """The records of one trained stage and its part of the training."""

    number: int
    """Its number in the schedule."""
    tau: float
    shots: int
    train: Sequence[Record]
    valid: Sequence[Record]
    tokens: int
    """Tokens of all training records, prompt and completion, by the base's tokenizer."""
    longest: int
    """Tokens of the longest record of either split."""
    rates: Sequence[float]
    """The learning rate of each of the stage's optimizer steps."""
    working: float = 0.0
    """Share of the working that stands before the answers."""

    def epochs(self, batch_size: int) -> float:
        """Return how often the stage's steps go through its training records."""
        return len(self.rates) * batch_size / len(self.train)


@dataclass(frozen=True, slots=True)
class Order:
    """The stages in the order of training, and how to train them."""

    folder: Path
    stages: list[dict[str, Any]]
    """One line per stage: stage, tau, shots, rows, tokens, epochs, files (relative to the folder), settings."""
    how: list[str]
    """Lines that explain how to chain them."""


def stage_line(stage: StageSet, epochs: float, **more: Any) -> dict[str, Any]:
    """Return what every format records about a stage, followed by the format's own facts."""
    return {
        "stage": stage.number,
        "tau": round(stage.tau, 4),
        "shots": stage.shots,
        **({"working": round(stage.working, 4)} if stage.working else {}),
        "rows": len(stage.train),
        "tokens": stage.tokens,
        "epochs": epochs,
        "train": f"{stage.number}/train.jsonl",
        "valid": f"{stage.number}/valid.jsonl",
        **more,
    }


def asked_with(residue: Preamble) -> str:
    """Return what the trained model is asked with.

    >>> asked_with(Preamble()), asked_with(Preamble("Be brief.", 1))
    ('the bare query', "the query after what stays of the prompt, as in the last stage's valid.jsonl")
    """
    if residue.slots:
        return f"the query with the values of the slots ({', '.join(residue.slots)}), as in {LAST}"
    return f"the query after what stays of the prompt, as in {LAST}" if residue else "the bare query"


def write_order(order: Order) -> None:
    """Write order.json, which a script can follow, and how.txt; raises RunError on a full disk."""
    write_json(order.folder / "order.json", {"stages": order.stages})
    with replacing(order.folder / "how.txt") as file:
        file.writelines(f"{line}\n" for line in order.how)
