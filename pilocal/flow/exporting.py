"""A finished run in other forms; each is measured before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilocal.errors import RunError
from pilocal.flow.artefacts import Artefacts
from pilocal.flow.checks import check_quant
from pilocal.flow.context import Context
from pilocal.flow.shipping import make_form, open_gate, score, serve, ship
from pilocal.flow.steps import EXPORT, TRAIN


def export_forms(
    context: Context, quants: Sequence[str], forms: Sequence[str], *, accept_loss: bool
) -> dict[str, dict[str, Any]]:
    """Export a trained adapter in other forms: `quants` through the gate, then `forms`, of shipping.FORMS.

    The first of `quants` is served from now on. Returns RUN/export/artefacts.json. Raises RunError when the training is
    not finished or the task has changed since, ExportError when the gate refuses a form.
    """
    run, task = context.run, context.task
    if not TRAIN.is_done(context):
        known = TRAIN.name in run.state["steps"]
        what = "the task or its settings have changed since" if known else "the training is not finished"
        raise RunError(run.path, what, fix=f"pilocal run {task.files['task']} --run {run.path}")
    for quant in quants:
        check_quant(task, quant, "--quant")
    context.metric.check(task.test)
    if quants:
        with open_gate(context) as gate:
            for number, quant in enumerate(quants):
                files, _ = ship(context, gate, quant, accept_loss=accept_loss)
                score(context, files, context.test_prompts(context.last_stage))
                if number == 0:
                    run.finish(EXPORT.name, EXPORT.key(context), serve(context, files), 0.0)
    for form in forms:
        make_form(context, form)
    return Artefacts(run.export).entries
