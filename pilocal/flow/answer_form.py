"""The form of a task's answers, `[serving] json_schema` or `grammar`: every bare query that is served has it."""

from __future__ import annotations

import json
from collections.abc import Callable

from pilocal.errors import InputError
from pilocal.task import Task


def answer_grammar(task: Task) -> str | None:
    """Return what every served answer must be, in GBNF; None where it may be any text.

    Raises InputError for a file that is no JSON schema, or no grammar, that can be served.
    """
    from pilocal.llamacpp.grammar import GrammarError, check_grammar
    from pilocal.llamacpp.json_schema import UnsupportedSchema, schema_grammar

    if task.answer_form is None:
        return None
    try:
        if task.serving.json_schema is None:
            check_grammar(task.answer_form)
            return task.answer_form
        return schema_grammar(json.loads(task.answer_form))
    except json.JSONDecodeError as error:
        raise InputError(task.files["json_schema"], f"not JSON: {error}", fix="write a JSON schema") from None
    except UnsupportedSchema as error:
        raise InputError(task.files["json_schema"], str(error), fix="leave it out, or say it otherwise") from None
    except GrammarError as error:
        raise InputError(task.files["grammar"], str(error), fix="mend it, or give a json_schema") from None


def warn_of_misfits(task: Task, warn: Callable[[str], None]) -> None:
    """Warn of training answers that no served answer could be; raises as `answer_grammar`."""
    from pilocal.llamacpp.grammar import Form

    grammar = answer_grammar(task)
    if grammar is None:
        return
    form = Form(grammar)
    misfits = [example.id for example in task.train if not form.fits(example.answer)]
    if misfits:
        name = "grammar" if task.serving.json_schema is None else "json_schema"
        what = f"{len(misfits)} of {len(task.train)} answers do not fit [serving] {name}"
        warn(f"{task.files['train']}: {what}, such as that of {misfits[0]}; no served answer can be so")
