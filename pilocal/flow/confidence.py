"""RUN/confidence.json and RUN/export/confidence.json: which served answers are left to the full prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.errors import PilocalError
from pilocal.flow.context import Context
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.calibration import Calibration, forget_calibration
from pilocal.run_folder.files import MISSHAPEN, read_json, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.run_folder.shipped import Shipped, read_shipped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pilocal.evaluate.confidence import Spoken
    from pilocal.task import Example

RULE = "best score on the first 256 validation examples"
"""How the threshold is chosen; part of the evaluation's key, so that runs without one get one."""

MOST = 256
"""Validation examples that are asked, the first ones."""


def calibrate_confidence(context: Context, key: str) -> tuple[Calibration | None, list[Path]]:
    """Choose the threshold on the validation examples; return it with the files, or None where they have no marks.

    `key` is that of the export. Raises ModelError when llama.cpp refuses a file, RunError when memory is missing.
    """
    from pilocal.evaluate.confidence import are_right, calibrate, doubtful, order_of

    run, metric, examples = context.run, context.metric, context.task.valid[:MOST]
    forget_calibration(run.export)
    asked = _Asked(context, read_shipped(run.path), key)
    spoken = asked.served()
    marks = _marks(context, [each.text for each in spoken], examples)
    if marks is None:
        return None, []
    right = are_right([each.text for each in spoken], examples, marks, metric)
    unsure = doubtful(order_of(spoken), right)
    full = _marks(context, asked.full(unsure), [examples[number] for number in unsure]) if unsure else marks[:0]
    if full is None:
        return None, []
    found = calibrate(spoken, marks, right, full, metric)
    for number, line in enumerate(asked.lines):
        line["mark"] = metric.total(marks[number : number + 1])
    for place, number in enumerate(unsure):
        asked.lines[number]["full_prompt_mark"] = metric.total(full[place : place + 1])
    asked.save()
    return found, [run.confidence, found.save(run.export)]


def confidence_line(found: Mapping[str, Any]) -> str:
    """Return what is said of metrics.json's `confidence`."""
    return f"--fallback-on: {Calibration(**found).line}"


def _marks(context: Context, answers: Sequence[str], examples: Sequence[Example]) -> NDArray[np.float64] | None:
    """Return the marks of answers to validation examples; warn and return None where they cannot be scored."""
    try:
        context.metric.check(examples)
        return context.metric.marks(answers, examples, context.progress)
    except PilocalError as error:
        context.warn(f"no confidence threshold, because the validation examples cannot be scored: {error}")
        return None


class _Asked:
    """The answers to the validation examples, kept in RUN/confidence.json so that they are asked for once."""

    def __init__(self, context: Context, served: Shipped, key: str) -> None:
        self._context, self._served = context, served
        generation = asdict(context.task.generation)
        self._key = fingerprint(key, [served.base_path.name, served.adapter, served.fused], generation, RULE)
        self.lines: list[dict[str, Any]] = self._known()

    def served(self) -> list[Spoken]:
        """Return what the served files answer to the bare queries."""
        from pilocal.evaluate.confidence import Source, Spoken, speak

        context, served = self._context, self._served
        if not self.lines:
            source = Source(gguf=served.served_path, adapter=served.adapter_path, **self._how)
            spoken = speak(source, self._prompts(context.last_stage), context.progress, "confidence: bare query")
            self.lines = [
                {"id": example.id, "answer": each.text, "confidence": each.confidence}
                for example, each in zip(context.task.valid, spoken, strict=False)
            ]
            self.save()
        return [Spoken(line["answer"], line["confidence"]) for line in self.lines]

    def full(self, numbers: Sequence[int]) -> list[str]:
        """Return what the base answers to some of them with the full prompt."""
        from pilocal.evaluate.confidence import Source, speak

        missing = [number for number in numbers if "full_prompt" not in self.lines[number]]
        if missing:
            source, prompts = Source(gguf=self._served.base_path, **self._how), self._prompts(0)
            asked = [prompts[number] for number in missing]
            said = speak(source, asked, self._context.progress, "confidence: full prompt")
            for number, each in zip(missing, said, strict=True):
                self.lines[number]["full_prompt"] = each.text
            self.save()
        return [str(self.lines[number]["full_prompt"]) for number in numbers]

    def save(self) -> None:
        """Write what is known."""
        write_json(self._context.run.confidence, {"key": self._key, "validation": self.lines})

    @property
    def _how(self) -> dict[str, Any]:
        return {"grammar": self._served.grammar, "max_tokens": self._context.task.generation.max_tokens}

    def _prompts(self, stage: int) -> list[list[int]]:
        records = self._context.records(stage, "valid")[:MOST]
        return [prompt_tokens(record["messages"][:-1], self._context.base.tokenizer) for record in records]

    def _known(self) -> list[dict[str, Any]]:
        """Return the lines of an earlier evaluation of the same files."""
        try:
            found = read_json(self._context.run.confidence)
            lines = [{name: line[name] for name in KEPT if name in line} for line in found["validation"]]
            whole = all(isinstance(line["answer"], str) and "confidence" in line for line in lines)
            count = len(self._context.task.valid[:MOST])
            return lines if whole and found["key"] == self._key and len(lines) == count else []
        except MISSHAPEN:
            return []


KEPT = ("id", "answer", "confidence", "full_prompt")
"""What of a line is asked for, and not made from it."""
