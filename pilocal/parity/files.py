"""Parity from a run folder, or from a recorded reference, to parity.json and parity.svg."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.parity.settings import Settings
from pilocal.progress import Progress, silent

DEFAULTS = Settings()


def parity(
    run: Path,
    settings: Settings = DEFAULTS,
    *,
    record: Path | None = None,
    progress: Progress = silent,
    warn: Callable[[str], None] = warnings.warn,
) -> dict[str, Any]:
    """Replay a run with MLX and with PyTorch, write RUN/parity.json and RUN/parity.svg, and return the former.

    Its "exceeded" lists what is beyond the tolerance. `record` keeps MLX's replay in that folder, for
    `replay_reference`. Raises InputError if the device is not there, the run has dropout or the steps do not reach
    every stage; RunError if the run has no stages, or does not fit its task, its base and this version.
    """
    settings = _found(settings)
    from pilocal.flow.listeners import Listeners
    from pilocal.flow.opening import open_run
    from pilocal.parity.picture import write_picture
    from pilocal.parity.report import check_run
    from pilocal.run.files import write_json

    with open_run(run, Listeners(progress=progress, warn=warn)) as context:
        result = check_run(context, settings, record)
        write_json(run / "parity.json", result)
        write_picture(result, run / "parity.svg")
    return result


def replay_reference(folder: Path, settings: Settings = DEFAULTS, progress: Progress = silent) -> dict[str, Any]:
    """Replay with PyTorch what `parity` recorded in a folder, and return what parity.json would say.

    Writes nothing, and MLX need not be installed. Raises InputError if the reference is damaged or was made for another
    base, or the device is not there.
    """
    settings = _found(settings)
    from pilocal.parity.report import check_reference

    return check_reference(folder, settings, progress)


def _found(settings: Settings) -> Settings:
    """Return the settings with a device that is there; raises InputError if PyTorch or the device is missing."""
    from pilocal.training.torch_backend.device import find_device

    return replace(settings, device=find_device(settings.device))
