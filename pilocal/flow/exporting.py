"""A finished run in other forms; each is measured before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.errors import ModelError, RunError
from pilocal.flow.artefacts import Artefacts
from pilocal.flow.checks import check_quant
from pilocal.flow.context import Context
from pilocal.flow.shipping import copy_links, make_form, metric_settings, open_gate, score, serve, ship, tell_of_links
from pilocal.flow.steps import EXPORT, TRAIN, adapter_step
from pilocal.flow.steps.retention import refuse_forgetting
from pilocal.run_folder.shipped import read_shipped


def export_forms(
    context: Context,
    quants: Sequence[str],
    forms: Sequence[str],
    *,
    accept_loss: bool,
    copy: bool = False,
    beside: Sequence[Path] = (),
) -> dict[str, dict[str, Any]]:
    """Export a trained adapter in other forms: `quants` through the gate, then `forms`, of shipping.FORMS.

    The first of `quants` is served from now on. With `copy` the folder holds files of its own and no links. The form
    for llama-server has the runs `beside`, too. Returns RUN/export/artefacts.json. Raises RunError when the training is
    not finished, the task has changed since, or nothing is there to copy; ExportError when a gate refuses a form.
    """
    run = context.run
    if quants or forms:
        _check_trained(context)
        refuse_forgetting(context, accept_loss=accept_loss)
        context.metric.check(context.task.test)
    else:
        read_shipped(run.path)
    for quant in quants:
        check_quant(context.task, quant, "--quant")
    if quants:
        with open_gate(context) as gate:
            for number, quant in enumerate(quants):
                files, _ = ship(context, gate, quant, accept_loss=accept_loss)
                score(context, files, context.test_prompts(context.last_stage))
                if number == 0:
                    run.finish(EXPORT.name, EXPORT.key(context), serve(context, files), 0.0)
    follow_task(context)
    for form in forms:
        make_form(context, form, beside)
    if copy:
        copy_links(context)
    tell_of_links(context)
    return Artefacts(run.export).entries


def follow_task(context: Context) -> None:
    """Let what is served have the name and the metric that the task has today: no weights depend on them."""
    try:
        shipped = read_shipped(context.run.path)
    except (ModelError, RunError):
        return
    today = replace(shipped, name=context.task.name, **metric_settings(context))
    if today != shipped:
        context.run.rewritten(EXPORT.name, today.save_alone())


def _check_trained(context: Context) -> None:
    run, task = context.run, context.task
    last = adapter_step(context)
    if not (TRAIN.is_done(context) and last.is_done(context)):
        known = last.name in run.state["steps"]
        what = "the task or its settings have changed since" if known else "the training is not finished"
        raise RunError(run.path, what, fix=f"pilocal run {task.files['task']} --run {run.path}")
