"""A look at what a compressor makes of a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pilocal.compress import CompressedTemplate
from pilocal.flow.opening import open_task


def preview_templates(
    task: str | Path,
    *,
    schedule: str | Path | None = None,
    method: str | None = None,
    taus: Sequence[float] = (),
) -> tuple[CompressedTemplate, ...]:
    """Return what a compressor makes of a task's template, keeping nothing; the task's and the schedule's by default.

    Raises what `opening.open_task` raises.
    """
    with open_task(Path(task), Path(schedule) if schedule else None, None) as context:
        compression = context.task.compression
        compression = replace(compression, method=method) if method else compression
        return context.compress(taus or context.taus, compression)
