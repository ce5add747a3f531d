"""compress: the template at every stage's tau, into RUN/templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pilocal.compress import compression_facts
from pilocal.flow.context import Context
from pilocal.flow.step import Step


def _facts(context: Context) -> list[Any]:
    tools = compression_facts(context.taus, context.task.compression, context.compression_tools)
    return [context.task.template, context.taus, tools]


def _make(context: Context, key: str) -> list[Path]:
    assert context.templates  # compressed when they are first asked for
    return sorted(path for path in context.run.templates.iterdir() if path.is_file())


COMPRESS = Step(name="compress", facts=_facts, make=_make, settled=True)
