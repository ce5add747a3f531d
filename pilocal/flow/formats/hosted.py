"""Chat JSONL for a host that fine-tunes: one job per trained stage, each from the model of the job before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.flow.formats.order import Order, StageSet, asked_with, stage_line, write_order
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Record
from pilocal.run_folder.rows import write_records
from pilocal.task import Training

Settings = Callable[[StageSet, int, Training], Mapping[str, Any]]
"""Makes what a job needs of a stage, its whole epochs and the task's `[training]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host: the form of its lines, its limits, and how its jobs follow each other."""

    title: str
    line: Callable[[Record], dict[str, Any]]
    """Writes a record as the host reads it."""
    settings: Settings
    how: Sequence[str]
    """Lines that explain how to chain the jobs."""
    least_rows: int = 1
    """Of a training file."""
    most_rows: int | None = None
    """Of training and validation file together; None where no limit is published."""
    most_tokens: int | None = None
    """Of a row; the host's own count differs a little. None where the model decides."""
    most_bytes: int | None = None
    """Of a file."""
    most_epochs: int | None = None
    reserved: Sequence[str] = ()
    """Texts that no message may hold."""
    weights: bool = True
    """Whether an answer can be shown without being learned."""


def write_hosted(
    host: Host,
    stages: Sequence[StageSet],
    folder: Path,
    training: Training,
    warn: Callable[[str], None],
    residue: Preamble,
) -> Order:
    """Write train.jsonl and valid.jsonl of every stage into `folder`, and the order in which to train them.

    `warn` is called for files that the host would refuse. Raises RunError on a full disk.
    """
    lines = []
    for stage in stages:
        files = {}
        for split, records in (("train", stage.train), ("valid", stage.valid)):
            files[split] = write_records(folder / str(stage.number), split, map(host.line, records))
        exact = stage.epochs(training.batch_size)
        # The host counts in whole epochs.
        epochs = min(max(1, round(exact)), host.most_epochs or round(exact) + 1)
        for fault in _faults(host, stage, files):
            warn(f"{folder / str(stage.number)}: {fault}")
        more = host.settings(stage, epochs, training)
        lines.append(stage_line(stage, epochs, schedule_epochs=round(exact, 2), **more))
    if len(stages[0].train) < host.least_rows:
        what = f"{host.title} wants at least {host.least_rows} training examples; these are {len(stages[0].train)}"
        warn(f"{folder}: {what}")
    order = Order(folder, lines, _how(host, folder, lines, residue))
    write_order(order)
    return order


def _faults(host: Host, stage: StageSet, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield what the host would refuse of a stage's files."""
    rows = len(stage.train) + len(stage.valid)
    if host.most_rows is not None and rows > host.most_rows:
        yield f"{host.title} takes at most {host.most_rows:,} rows, those for validation included; these are {rows:,}"
    if host.most_tokens is not None and stage.longest > host.most_tokens:
        yield f"{host.title} takes rows of at most {host.most_tokens:,} tokens; the longest has about {stage.longest:,}"
    for path in files.values():
        size = path.stat().st_size
        if host.most_bytes is not None and size > host.most_bytes:
            yield f"{host.title} takes files of at most {host.most_bytes:,} bytes; {path.name} has {size:,}"
        yield from _reserved(host, path)


def _reserved(host: Host, path: Path) -> Iterator[str]:
    """Yield which texts that no message may hold stand in a file, and in how many of its lines."""
    found: dict[str, list[int]] = {}
    if not host.reserved:
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = "\n".join(_texts(json.loads(line)))
            for word in host.reserved:
                if word in text:
                    found.setdefault(word, []).append(number)
    for word, numbers in found.items():
        yield f"{host.title} refuses a file with {word!r}: {path.name}, {len(numbers)} lines, the first is {numbers[0]}"


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a line, keys apart."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _how(host: Host, folder: Path, lines: Sequence[dict[str, Any]], residue: Preamble) -> list[str]:
    return [
        f"train them in this order; the files are in {folder}; order.json has the settings of each job",
        *host.how,
        "tokens are counted with this task's base; the host's own count differs",
        f"after the last job, send {asked_with(residue, lines)}" + ("" if residue else ": no template, no shots"),
    ]
