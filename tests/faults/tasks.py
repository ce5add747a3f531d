"""The tasks on which the commands are tried: small enough that a run takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pilocal.base.base import find_base
from tests.test_flow import make_task
from tests.test_synth import template_only
from tests.tiny import make_base


def made(command: str) -> Callable[[Path], Path]:
    """Return what makes the task of a command: a random model's, or the starter's where answers have to end."""

    def make(folder: Path) -> Path:
        starter = find_base("starter", Path())
        if command == "synth":
            return template_only(folder, starter)
        base = make_base(folder.with_name("base"), starter.folder)
        return make_task(folder, base.folder, steps=4)

    return make
