"""Put a recurring prompt into the weights of a local model, prove that nothing was lost, ship it to llama.cpp.

`run` does it all; `Run` is what it leaves. Everything here is imported when it is first used.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilocal.comparison.arms import parse_arms
    from pilocal.comparison.design import Design
    from pilocal.comparison.files import compare
    from pilocal.errors import (
        ExportError,
        Faults,
        InputError,
        ModelError,
        ParityError,
        PilocalError,
        RunError,
        SandboxError,
        TrainingError,
    )
    from pilocal.flow.listeners import Listeners
    from pilocal.flow.plan import Plan, check
    from pilocal.flow.run import Run, load, run
    from pilocal.flow.saving import Prices
    from pilocal.flow.start import Start
    from pilocal.server.options import ServeOptions
    from pilocal.server.server import serve
    from pilocal.synth.files import synthesize
    from pilocal.task import Task, load_task
    from pilocal.task.schedule import Schedule, load_schedule
    from pilocal.training.backend import Backend

# Read by the OpenMP library when PyTorch, llama.cpp or a BLAS loads it. By default its threads spin while they wait for
# each other: beside other work on every core a product of 1 ms then takes 100 ms.
if sys.platform == "linux":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # GNU's threads look so often before they sleep, some microseconds: as long as llama.cpp's wait for each other in a
    # small model. It writes 1.5 times as fast then, on a quiet machine and on a busy one; at 10,000 a busy one stalls.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Nobody is told to install PyTorch for a tokenizer's sake; read when transformers is imported.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Design",
    "ExportError",
    "Faults",
    "InputError",
    "Listeners",
    "ModelError",
    "ParityError",
    "PilocalError",
    "Plan",
    "Prices",
    "Run",
    "RunError",
    "SandboxError",
    "Schedule",
    "ServeOptions",
    "Start",
    "Task",
    "TrainingError",
    "check",
    "compare",
    "load",
    "load_schedule",
    "load_task",
    "parse_arms",
    "run",
    "serve",
    "synthesize",
]

HOMES = {
    "Backend": "training.backend",
    "Design": "comparison.design",
    "Listeners": "flow.listeners",
    "Plan": "flow.plan",
    "Prices": "flow.saving",
    "Run": "flow.run",
    "Schedule": "task.schedule",
    "ServeOptions": "server.options",
    "Start": "flow.start",
    "Task": "task",
    "check": "flow.plan",
    "compare": "comparison.files",
    "load": "flow.run",
    "load_schedule": "task.schedule",
    "load_task": "task",
    "parse_arms": "comparison.arms",
    "run": "flow.run",
    "serve": "server.server",
    "synthesize": "synth.files",
}
"""The module of every name that is no error."""


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
