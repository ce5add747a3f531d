"""Processes that have imported everything already: each is forked off one that did nothing else.

Importing MLX, PyTorch and transformers takes seconds of processor time, which tests of what a command does need not pay
each. How a process begins (its imports, environment, signals and memory) is tested with Python itself.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
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


class Forked:
    """A process that calls a function of a module, with these environment variables beside this process's."""

    def __init__(self, function: Callable[..., object], *arguments: object, **variables: str) -> None:
        self._folder = Path(tempfile.mkdtemp())
        environment = os.environ | variables
        self._process = CONTEXT.Process(target=_become, args=(self._folder, environment, function, arguments))
        self._process.start()

    def said(self, stream: str = "stdout") -> str:
        """Return what it has written so far."""
        path = self._folder / stream
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def runs(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ends(self, seconds: float | None = None) -> tuple[int, str, str]:
        """Wait for its end and return exit status, stdout and stderr; it is killed after so many seconds."""
        try:
            self._process.join(seconds)
            assert not self.runs(), f"runs after {seconds} s"
        finally:
            self._process.kill()
            self._process.join()
            said = self.said(), self.said("stderr")
            SPENT.append(float(self.said("seconds") or 0))  # one that was killed does not say it
            shutil.rmtree(self._folder)
        assert self._process.exitcode is not None
        return self._process.exitcode, *said


def end_if_it_hangs() -> None:
    """Have this process say where it is, and end, if it is still there after 100 seconds."""
    faulthandler.dump_traceback_later(100, exit=True)


def pilocal(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own would."""
    words = [str(argument) for argument in arguments]
    return subprocess.CompletedProcess(words, *Forked(_command_line, words, **variables).ends())


def _command_line(words: list[str]) -> None:
    sys.argv[1:] = words
    from pilocal.cli import main

    main()


def _become(
    folder: Path, environment: dict[str, str], function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    """Call a function, in the process that was forked off."""
    for number, stream in ((1, "stdout"), (2, "stderr")):
        with (folder / stream).open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    try:
        function(*arguments)
    finally:
        times = os.times()
        (folder / "seconds").write_text(str(times.user + times.system + times.children_user + times.children_system))
