"""strength: RUN/adapter as strong as `[export] strength` has it, from what was trained last."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.flow.answering import Answering
from pilocal.flow.context import Context
from pilocal.flow.step import Step
from pilocal.flow.steps.on_policy import ON_POLICY, on_policy_facts
from pilocal.flow.steps.train import TRAIN
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.adapter import Adapter, copy_adapter, read_adapter
from pilocal.run_folder.files import write_json
from pilocal.task import AUTO

FILE = "strength.json"

TENTHS = (10, 9, 8, 7, 6, 5)
"""The strengths from which "auto" chooses, in tenths."""


def adapter_step(context: Context) -> Step:
    """Return the step that writes the final adapter."""
    wanted = (step for step in (STRENGTH, ON_POLICY) if step.wanted(context))
    return next(wanted, TRAIN)


def stage_folders(context: Context) -> list[Path]:
    """Return the folders of everything that is trained on the way to the final adapter, in its order."""
    last = [context.run.on_policy] if context.task.training.on_policy else []
    return [*map(context.run.stage, context.trained), *last]


def adapter_facts(context: Context) -> list[Any]:
    """Return what decides the final adapter beside the training of the stages."""
    weighed = [STRENGTH.key(context)] if _is_weighed(context) else []
    return [*on_policy_facts(context), *weighed]


def chosen_strength(context: Context) -> dict[str, Any]:
    """Return the strength that "auto" chose and the validation scores that it saw; nothing where it did not choose."""
    if context.task.export.strength != AUTO:
        return {}
    found: dict[str, Any] = json.loads((context.run.strength / FILE).read_text(encoding="utf-8"))
    return found


def _is_weighed(context: Context) -> bool:
    return context.task.export.strength != 1


def _wanted(context: Context) -> bool:
    # A task that wants it as trained again gets it back.
    return _is_weighed(context) or STRENGTH.name in context.run.state["steps"]


def _facts(context: Context) -> list[Any]:
    from pilocal.evaluate.scoring.metrics import metric_facts

    strength = context.task.export.strength
    seen = [context.task.export.gate_rows, metric_facts(context.task, context.metric), asdict(context.task.generation)]
    return [strength, *on_policy_facts(context), *(seen if strength == AUTO else [])]


def _make(context: Context, key: str) -> list[Path]:
    run, trained = context.run, stage_folders(context)[-1]
    strength, made = context.task.export.strength, list[Path]()
    if isinstance(strength, str):
        strength, made = _choose(context, key, read_adapter(trained))
    if strength == 1:
        files = copy_adapter(trained, run.adapter)
    else:
        files = read_adapter(trained).weighed(strength).write(run.adapter)
    for step in (TRAIN, ON_POLICY):
        for file in files:
            run.rewritten(step.name, file)
    return [*files, *made]


def _choose(context: Context, key: str, adapter: Adapter) -> tuple[float, list[Path]]:
    """Return the weakest strength at which the validation score is what it is at 1, and the files that say so."""
    rows = context.task.export.gate_rows
    records = context.records(context.last_stage, "valid")[:rows]
    prompts = [prompt_tokens(record["messages"][:-1], context.base.tokenizer) for record in records]
    scores, chosen, files = dict[float, float](), 1.0, list[Path]()
    for strength in (tenths / 10 for tenths in TENTHS):
        said, path = _answers(context, key, adapter.weighed(strength), prompts, strength)
        marks = context.metric.marks(said, context.task.valid[:rows], context.progress)
        scores[strength], files = context.metric.total(marks), [*files, *path]
        if scores[strength] < scores[1.0]:
            break
        chosen = strength
    found = {"strength": chosen, "rows": len(records), "scores": {f"{one:g}": score for one, score in scores.items()}}
    write_json(context.run.strength / FILE, found)
    return chosen, [context.run.strength / FILE, *files]


def _answers(
    context: Context, key: str, adapter: Adapter, prompts: Sequence[Sequence[int]], strength: float
) -> tuple[list[str], list[Path]]:
    """Return what an adapter answers, and the files that keep it."""
    with tempfile.TemporaryDirectory(prefix="pilocal-adapter-") as folder:
        adapter.write(Path(folder))
        answering = Answering(
            context=context,
            folder=context.run.strength / f"{strength:g}",
            key=key,
            title=f"strength {strength:g}: answers",
            max_tokens=context.task.generation.max_tokens,
            adapter=Path(folder),
        )
        return answering.answers(prompts), answering.files(len(prompts))


def _note(context: Context) -> str:
    found = chosen_strength(context)
    if not found:
        return ""
    scores = ", ".join(f"{score:.3f} at {strength}" for strength, score in found["scores"].items())
    return f"{found['strength']:g} of what was trained is shipped; {found['rows']} validation rows score {scores}"


STRENGTH = Step(
    name="strength", needs=(TRAIN,), also=(ON_POLICY,), facts=_facts, make=_make, note=_note, wanted=_wanted
)
