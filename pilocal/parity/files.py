"""Parity from a run folder, or from a recorded reference, to parity.json and parity.svg."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.flow.listeners import QUIET, Listeners
from pilocal.packages import require_packages
from pilocal.parity.settings import Settings

DEFAULTS = Settings()


def parity(
    run: str | Path,
    settings: Settings = DEFAULTS,
    *,
    record: str | Path | None = None,
    listeners: Listeners = QUIET,
) -> dict[str, Any]:
    """Replay a run with MLX and with PyTorch, write RUN/parity.json and RUN/parity.svg, and return the former.

    Its "exceeded" lists what is beyond the tolerance. `record` keeps MLX's replay in that folder, for
    `replay_reference`. Raises InputError if the device is not there, the run has dropout or the steps do not reach
    every stage; RunError if the run has no stages, or does not fit its task, its base and this version.
    """
    require_packages("parity.svg", "matplotlib")
    settings = _found(settings)
    from pilocal.flow.opening import open_run
    from pilocal.parity.picture import write_picture
    from pilocal.parity.report import check_run
    from pilocal.run_folder.files import write_json

    folder = Path(run)
    with open_run(folder, listeners) as context:
        result = check_run(context, settings, Path(record) if record else None)
        write_json(folder / "parity.json", result)
        write_picture(result, folder / "parity.svg")
    return result


def replay_reference(
    folder: str | Path, settings: Settings = DEFAULTS, *, listeners: Listeners = QUIET
) -> dict[str, Any]:
    """Replay with PyTorch what `parity` recorded in a folder, and return what parity.json would say.

    Writes nothing, and MLX need not be installed. Raises InputError if the reference is damaged or was made for another
    base, or the device is not there.
    """
    settings = _found(settings)
    from pilocal.parity.report import check_reference

    return check_reference(Path(folder), settings, listeners.progress)


def _found(settings: Settings) -> Settings:
    """Return the settings with a device that is there; raises InputError if PyTorch or the device is missing."""
    from pilocal.training.torch_backend.device import find_device

    return replace(settings, device=find_device(settings.device))
