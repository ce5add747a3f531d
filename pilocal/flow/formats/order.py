"""What every format writes: one folder per trained stage, and the order in which to train them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Record
from pilocal.run_folder.files import replacing, write_json


class Records(Protocol):
    """Records that are counted, and may be read from a file each time."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __iter__(self) -> Iterator[Record]:
        """Yield them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSet:
    """The records of one trained stage and its part of the training."""

    number: int
    """Its number in the schedule."""
    tau: float
    shots: int
    train: Records
    valid: Records
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


def asked_with(residue: Preamble, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what the trained model is asked with; `lines` are those of `stage_line`, by which a file is named.

    >>> lines = [{"valid": "1/valid.jsonl"}, {"valid": "2/valid.jsonl"}]
    >>> asked_with(Preamble(), lines), asked_with(Preamble("Be brief.", 1), lines)
    ('the bare query', 'the query after what stays of the prompt, as in 2/valid.jsonl')
    """
    shown = f"as in {lines[-1]['valid']}"
    if residue.slots:
        return f"the query with the values of the slots ({', '.join(residue.slots)}), {shown}"
    return f"the query after what stays of the prompt, {shown}" if residue else "the bare query"


def write_order(order: Order) -> None:
    """Write order.json, which a script can follow, and how.txt; raises RunError on a full disk."""
    write_json(order.folder / "order.json", {"stages": order.stages})
    with replacing(order.folder / "how.txt") as file:
        file.writelines(f"{line}\n" for line in order.how)
