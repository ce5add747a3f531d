"""Processes that have imported everything already: each is forked off one that did nothing else.

Importing MLX, PyTorch and transformers takes seconds of processor time, which tests of what a command does need not pay
each. How a process begins (its imports, environment, signals and memory) is tested with Python itself.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform != "linux":  # Metal does not outlive a fork
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked_imports"])
    return context


CONTEXT = _context()
SPENT: list[float] = []
"""Seconds of processor time of the processes that have ended; the system does not count them as this one's children."""


def pilocal(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own would, with these environment variables beside this process's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = CONTEXT.Process(target=_main, args=([*map(str, arguments)], folder, os.environ | variables))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
            process.join()
        said = [(folder / stream).read_text(encoding="utf-8") for stream in ("stdout", "stderr")]
        assert process.exitcode is not None
        assert process.exitcode >= 0, said
        SPENT.append(float((folder / "seconds").read_text()))
        return subprocess.CompletedProcess(["pilocal", *map(str, arguments)], process.exitcode, *said)


def _main(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Become the command line, in the process that was forked off."""
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with (folder / stream).open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv[1:] = arguments
    from pilocal.cli import main

    try:
        main()
    finally:
        times = os.times()
        (folder / "seconds").write_text(str(times.user + times.system + times.children_user + times.children_system))
