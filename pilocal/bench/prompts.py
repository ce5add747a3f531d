"""The requests of a run: its test set as full prompts and as bare queries, in the tokens of its GGUF file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.llamacpp.chat import ChatTemplate
from pilocal.llamacpp.model import Model
from pilocal.prompt.render import Record, render
from pilocal.prompt.tokens import common_prefix
from pilocal.retrieve import ShotPicker
from pilocal.run_folder.rows import read_records
from pilocal.run_folder.shipped import Shipped


@dataclass(frozen=True, slots=True)
class Prompts:
    """The same requests in both forms, in the same order."""

    full: Sequence[Sequence[int]]
    """Template, shots and query."""
    bare: Sequence[Sequence[int]]
    """The query alone, or after what stays of the prompt."""
    longest_answer: int
    """Tokens of the longest answer among the examples, with its end."""

    @property
    def prefix(self) -> Sequence[int]:
        """What all full prompts begin with; each keeps at least one token of its own."""
        return self.full[0][: common_prefix(self.full)]


def read_prompts(run: Path, shipped: Shipped, count: int) -> Prompts:
    """Return `count` requests of a run's test set, or of its examples if only its export is left.

    The first ones are taken, and again from the start if there are fewer. Raises RunError when the run's rows are
    damaged, ModelError when llama.cpp refuses the file or it has no chat template.
    """
    full, bare = _test_records(run) or _example_records(shipped, count)
    full, bare = ([records[i % len(records)] for i in range(count)] for records in (full, bare))
    gguf = shipped.served_path
    with Model(gguf, vocabulary_only=True) as model:
        chat = ChatTemplate(model.tokenizer, gguf, shipped.served_template)
        answers = [model.tokenizer.tokens(record["messages"][-1]["content"], special=False) for record in bare]
        full_prompts, bare_prompts = ([chat.tokens(each["messages"][:-1]) for each in some] for some in (full, bare))
        return Prompts(full_prompts, bare_prompts, max(map(len, answers)) + 1)


def _test_records(run: Path) -> tuple[list[Record], list[Record]] | None:
    """Return the first and the last stage's test records, or None when the run no longer has stages."""
    stages = sorted((path.parent for path in (run / "stages").glob("*/test.jsonl")), key=lambda path: int(path.name))
    if not stages:
        return None
    full, bare = (read_records(stage, "test") for stage in (stages[0], stages[-1]))
    if not full or len(full) != len(bare):
        raise RunError(run / "stages", "the stages' test sets differ", fix="`pilocal stages` writes them again")
    return full, bare


def _example_records(shipped: Shipped, count: int) -> tuple[list[Record], list[Record]]:
    examples = shipped.examples()
    asked = examples[:count]
    with tempfile.TemporaryDirectory() as folder:
        where = shipped.folder
        how: dict[str, Any] = {"k": shipped.shots, "seed": shipped.seed, "where": where, "models": where}
        picker = ShotPicker(examples, shipped.retrieval, Path(folder), **how)
        chosen = picker.for_queries([(each.query, each.history) for each in asked], shipped.shots)
    full = [
        render(shipped.template, [examples[i] for i in shots], each) for each, shots in zip(asked, chosen, strict=True)
    ]
    stays = shipped.residue
    bare = [
        render(stays.template, [examples[i] for i in shots[len(shots) - stays.shots :]], each)
        for each, shots in zip(asked, chosen, strict=True)
    ]
    return full, bare
