"""export: the files that are served, through the gate, into RUN/export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pilocal.flow.answer_form import answer_grammar
from pilocal.flow.artefacts import Artefacts
from pilocal.flow.context import Context
from pilocal.flow.shipping import open_gate, serve, ship, tell_of_links
from pilocal.flow.step import Step
from pilocal.flow.steps.retention import RETENTION, refuse_forgetting
from pilocal.flow.steps.strength import STRENGTH, adapter_facts
from pilocal.flow.steps.train import TRAIN
from pilocal.run_folder.calibration import forget_calibration


def _facts(context: Context) -> list[Any]:
    settings = asdict(context.task.export)
    limit = settings.pop("retention")
    del settings["strength"]  # the adapter's facts have it
    grammar = answer_grammar(context.task)
    made = [settings, *adapter_facts(context), *([grammar] if grammar else [])]
    return made if limit is None else [*made, limit, RETENTION.key(context)]


def _make(context: Context, key: str) -> list[Path]:
    export = context.task.export
    Artefacts(context.run.export).clear()
    forget_calibration(context.run.export)
    refuse_forgetting(context, accept_loss=export.accept_loss)
    with open_gate(context) as gate:
        files, _ = ship(context, gate, export.quant, accept_loss=export.accept_loss)
    tell_of_links(context)
    return serve(context, files)


EXPORT = Step(name="export", needs=(TRAIN,), also=(STRENGTH, RETENTION), facts=_facts, make=_make)
