"""evaluate: every arm's answers, scored and timed, into RUN/metrics.json and RUN/answers.jsonl."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.errors import PilocalError
from pilocal.flow.artefacts import Artefacts
from pilocal.flow.confidence import RULE, calibrate_confidence
from pilocal.flow.context import Context
from pilocal.flow.references import has_accelerator, reference_loader
from pilocal.flow.step import Step
from pilocal.flow.steps.direct_drop import DIRECT_DROP
from pilocal.flow.steps.export import EXPORT
from pilocal.flow.steps.retention import RETENTION, read_retention
from pilocal.flow.steps.strength import chosen_strength
from pilocal.flow.steps.train import TRAIN
from pilocal.flow.written_template import written_template
from pilocal.packages import is_installed
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.files import MISSHAPEN, read_json, replacing, write_json
from pilocal.run_folder.hashes import fingerprint
from pilocal.run_folder.shipped import read_shipped
from pilocal.task.tables import GENPI

if TYPE_CHECKING:
    from pilocal.evaluate.answer import Answered
    from pilocal.evaluate.score import Marks


def _answering(context: Context) -> list[Any]:
    """Return what decides the answers beside what was exported: the files that are served, and the ablation."""
    try:
        served = read_shipped(context.run.path)
        files = [served.base_path.name, served.adapter, served.fused]
    except PilocalError:
        files = []
    return [files, DIRECT_DROP.key(context) if DIRECT_DROP.wanted(context) else ""]


def _facts(context: Context) -> list[Any]:
    from pilocal.evaluate.scoring.metrics import metric_facts

    return [
        *_answering(context),
        RETENTION.key(context),
        metric_facts(context.task, context.metric),
        asdict(context.task.generation),
        RULE,
    ]


def _make(context: Context, key: str) -> list[Path]:
    from pilocal.evaluate.score import mark, score

    run, task = context.run, context.task
    answered = _answered(context)
    marks = mark(answered, task.test, context.metric, context.progress)
    metrics = {"metric": task.metric} | score(answered, marks, context.metric) | _stays(context)
    if chosen := chosen_strength(context):
        metrics["strength"] = chosen
    metrics |= {"gate": Artefacts(run.export).gated, "retention": read_retention(context)}
    calibration, calibrated = calibrate_confidence(context, EXPORT.key(context))
    if calibration:
        metrics["confidence"] = asdict(calibration)
    files = [run.metrics, run.answers, *calibrated, *_score_entries(context, marks, metrics)]
    if task.training.objective == GENPI:
        metrics["prompt_generation"] = written_template(context, TRAIN.key(context))
        files.append(run.written)
    write_json(run.metrics, metrics)
    with replacing(run.answers) as file:
        for i, example in enumerate(task.test):
            line = {"id": example.id, "query": example.query, "answer": example.answer}
            line |= {arm: said[i] for arm, said in answered.answers.items()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return files


def _score_entries(context: Context, marks: Marks, metrics: dict[str, Any]) -> list[Path]:
    """Add the scores by entry of the template to the metrics, and return their picture where matplotlib draws it."""
    from pilocal.flow.by_entry import draw_entries, score_entries

    picture = context.run.entries_picture
    picture.unlink(missing_ok=True)
    scored = score_entries(context.task, context.metric, marks)
    if not scored:
        return []
    metrics["entries"] = scored
    if not is_installed("matplotlib"):
        return []
    draw_entries(scored, context.task.metric, picture)
    return [picture]


def _stays(context: Context) -> dict[str, Any]:
    """Return what stays of the prompt, which the arms with a bare query have before it; nothing where none does."""
    residue = context.residue
    if not residue:
        return {}
    tokens = context.compression_tools.count_tokens(residue.template) if residue.template else 0
    return {"residue": {"template_tokens": tokens, "shots": residue.shots}}


def _answered(context: Context) -> Answered:
    """Return every arm's answers: those of an earlier evaluation, if nothing but the scoring has changed."""
    from pilocal.evaluate.answer import Answered, ModelFiles, TestSet, answer
    from pilocal.evaluate.asking import Asker

    run = context.run
    served = read_shipped(run.path)
    key = fingerprint(EXPORT.key(context), *_answering(context), asdict(context.task.generation))
    try:
        known = read_json(run.answered)
        if known["key"] == key:
            return Answered(known["answers"], known["costs"])
    except MISSHAPEN:
        pass  # answered again

    answered = answer(
        ModelFiles(
            run.adapter,
            run.direct_drop if DIRECT_DROP.wanted(context) else None,
            served.base_path,
            served.served_path,
            served.adapter_path,
            same_base=served.fused is None,
        ),
        TestSet(context.test_prompts(0), context.test_prompts(context.last_stage)),
        Asker(
            base=context.base,
            ends=end_tokens(context.base.tokenizer),
            generation=context.task.generation,
            progress=context.progress,
            load=reference_loader(context),
            accelerated=has_accelerator(context),
        ),
    )
    write_json(run.answered, {"key": key} | asdict(answered))
    return answered


EVALUATE = Step(name="evaluate", needs=(EXPORT,), also=(DIRECT_DROP, RETENTION), facts=_facts, make=_make)
