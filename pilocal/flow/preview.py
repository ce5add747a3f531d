"""A preview of a compressor on a template."""

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
    """Return what a compressor makes of a task's template, and keep nothing.

    By default the compressor is the task's and the taus are the schedule's. Raises what `opening.open_task` raises.
    """
    with open_task(Path(task), Path(schedule) if schedule else None, None) as context:
        compression = context.task.compression
        compression = replace(compression, method=method) if method else compression
        return context.compress(taus or context.taus, compression)
