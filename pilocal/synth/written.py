"""The records of a synthesis as the files of examples have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilocal.run_folder.files import replacing
from pilocal.synth.queries import Asked, Coverage
from pilocal.synth.records import Labelled
from pilocal.task import Example


def write_records(folder: Path, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the file of each split; raises RunError if the disk is full."""
    for split, some in records.items():
        with replacing(folder / f"{split}.jsonl") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in some)


def records_of(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Yield examples as they are written in a file."""
    for example in examples:
        if example.history:
            turns = [*example.history, ("user", example.query), ("assistant", example.answer)]
            messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
            for number in example.unlearned:
                messages[number]["weight"] = 0
            said: dict[str, Any] = {"messages": messages}
        else:
            said = {"query": example.query, "answer": example.answer}
        yield {"id": example.id} | said | dict(example.extra)


def new_records(
    split: str, answered: Sequence[tuple[Asked, Labelled]], coverage: Coverage, made_by: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the answered queries of a split that are learned from, each with what it came from."""
    for number, (asked, said) in enumerate(answered):
        if asked.split != split or said.dropped is not None:
            continue
        record: dict[str, Any] = {"query": said.query, "answer": said.answer}
        if said.turns:
            turns = [("user", said.query), ("assistant", said.answer), *said.turns]
            record = {"messages": [{"role": role, "content": text} for role, text in turns]}
        entries = [coverage.entries[number].text for number in asked.entries]
        origin = {"origin": asked.origin, "entries": entries, "made_by": made_by}
        yield {"id": f"synth-{number}"} | record | origin
