"""index: the ranking of shots for every training example, into RUN/index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.flow.step import Step
from pilocal.retrieve import model_hash


def _facts(context: Context) -> list[Any]:
    retrieval = context.task.retrieval
    how = asdict(retrieval)
    if retrieval.similarity == "embedding":
        how["model_sha256"] = model_hash(retrieval.embedding_model, context.task.folder)
    if retrieval.pool < 1:
        how["seed"] = context.task.training.seed
    return [[example.facts for example in context.task.train], how, context.max_shots]


def _make(context: Context, key: str) -> list[Path]:
    assert context.picker  # ranked when it is first asked for
    return sorted(path for path in context.run.index.iterdir() if path.is_file())


def _note(context: Context) -> str:
    """Return how good the shots from a shortlist are, where the choice is not exact."""
    known = context.picker.shortlist
    if not known:
        return ""
    share = known["mean_bleu"] / known["mean_bleu_exact"] if known["mean_bleu_exact"] else 1.0
    what = f"shots from shortlists of {known['texts']:g}"
    return f"{what}: recall {known['recall']:.3f}, {share:.4f} of exact BLEU, on {known['sample']:g} examples"


INDEX = Step(name="index", facts=_facts, make=_make, note=_note, settled=True)
