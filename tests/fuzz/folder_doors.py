"""Doors of folders that come from elsewhere: a reference of another machine, the checkpoint of a compressor."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

from pilocal.compress.llmlingua2 import checked_checkpoint
from pilocal.parity.reference import load_reference
from tests.fuzz import mutate
from tests.fuzz.door import Door, Files, door

REFERENCE = Path(__file__).parent.parent / "parity" / "starter"

CHECKPOINT = {
    "architectures": ["BertForTokenClassification"],
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "model_type": "bert",
}


@cache
def _reference() -> Files:
    return {path.name: path.read_bytes() for path in sorted(REFERENCE.iterdir())}


def _mutate_reference(files: Files, random: Random) -> Files:
    name = random.choice(sorted(files))
    change = mutate.any_safetensors if name.endswith(".safetensors") else mutate.JSON
    return files | {name: change(files[name], random)}


door(
    Door(
        name="parity reference",
        make=lambda random: dict(_reference()),
        mutate=_mutate_reference,
        knock=lambda folder, files: load_reference(folder),
        short=20,
    )
)

door(
    Door(
        name="compressor checkpoint",
        make=lambda random: {"config.json": json.dumps(CHECKPOINT).encode()},
        mutate=mutate.files_by(lambda name: mutate.JSON),
        knock=lambda folder, files: checked_checkpoint(folder),
        short=60,
    )
)
