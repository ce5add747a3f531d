"""A fault at the moment in which a command opens a file to write it, or puts one into its place."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND

SIGNALS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}
"""What the process sends itself, once."""

ERRORS = {
    "disk full": errno.ENOSPC,
    "disk broken": errno.EIO,
    "no more files": errno.EMFILE,
    "read-only": errno.EROFS,
}
"""What every such moment fails with from then on."""

VANISHED = "folder vanishes"
"""The folder of the task is moved away, once."""

CLOCK = "clock jumps back"
"""time.time() is an hour less from then on."""

AT_A_WRITE = (*SIGNALS, *ERRORS, VANISHED, CLOCK)
"""The faults that happen at the nth write."""


class Injection:
    """What happens at the nth write below a folder; the writes are counted where no fault is given.

    With `reads`, opening a file to read it counts, too.
    """

    def __init__(self, folder: Path, fault: str | None, nth: int, aside: Path, *, reads: bool = False) -> None:
        self.folder, self.fault, self.nth, self.aside = f"{folder}{os.sep}", fault, nth, aside
        self.reads = reads
        self.count = 0
        self._busy = False

    def install(self) -> None:
        """Watch this process from now on; it cannot be undone."""
        sys.addaudithook(self._seen)

    def _seen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or event not in ("open", "os.rename"):
            return
        path = arguments[0] if event == "open" else arguments[1]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if event == "open" and not self.reads and not arguments[2] & WRITES:
            return
        if str(Path(os.fsdecode(path)).absolute()).startswith(self.folder):
            self.moment(os.fsdecode(path))

    def moment(self, path: str) -> None:
        """Count something that is done to a file, and let the fault happen if it is time."""
        self.count += 1
        if self.fault is None or self.count < self.nth:
            return
        self._busy = True  # what it does itself is not counted
        try:
            self._happen(path)
        finally:
            self._busy = False

    def _happen(self, path: str) -> None:
        if self.fault in ERRORS:
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]), path)
        if self.count > self.nth:
            return
        if self.fault == VANISHED:
            Path(self.folder).rename(self.aside)
        elif self.fault == CLOCK:
            set_back()
        elif self.fault is not None:
            for number in SIGNALS[self.fault]:
                os.kill(os.getpid(), number)


def set_back() -> None:
    """Let the clock of this process be an hour late."""
    import time

    now: Callable[[], float] = time.time
    time.time = lambda: now() - 3600


def run(words: list[str], folder: Path, fault: str | None, nth: int, aside: Path, counted: Path) -> None:
    """Run the command line with a fault at the nth write below `folder`; write how many there were to `counted`."""
    from pilocal.cli import main

    injection = Injection(folder, fault, nth, aside)
    sys.argv[1:] = words
    injection.install()
    try:
        main()
    finally:
        counted.write_text(str(injection.count))
