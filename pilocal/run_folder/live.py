"""live.json: what a run does now, for those who watch its folder; it goes when the run has done what was asked.

It is a view: nothing is decided by it, and a disk that takes no more of it ends no run.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, parse_json
from pilocal.run_folder.typed import made

LOOK = 2.0
"""Seconds between two looks at whether there is something new to write."""

PULSE = 10.0
"""Seconds after which the same is written again, with the time that has passed: a run that is killed falls silent."""

INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What a run does now; the fields are the keys of live.json. Times are seconds: no two clocks need agree."""

    steps: tuple[str, ...]
    """The names of the steps that were asked for, in their order."""
    step: str = ""
    """The one that is made; empty between two."""
    seconds: float = 0.0
    """Since it began."""
    what: str = ""
    """The work that was reported last, which is not over yet; empty where none is known."""
    done: int = 0
    total: int = 0
    note: str = ""
    what_seconds: float = 0.0
    """Since that work began."""
    ended: str = ""
    """Why the run stopped before its end: INTERRUPTED, or the line about the error; empty while it goes on."""


def read_live(path: Path) -> Live | None:
    """Return what a live.json says, None where there is none; raises RunError for a damaged one."""
    try:
        values = parse_json(path.read_bytes())
        live = made(Live, values | {"steps": tuple(map(str, values["steps"]))})
        right = math.isfinite(live.seconds) and math.isfinite(live.what_seconds)
    except FileNotFoundError:
        return None
    except MISSHAPEN as error:
        raise RunError(path, f"damaged: {error}", fix="delete it; nothing depends on it") from None
    if not right:
        raise RunError(path, "damaged: a value of another kind", fix="delete it; nothing depends on it")
    return live


class LiveFile:
    """Keeps live.json up to date while it is entered, in a thread of its own that only writes."""

    def __init__(self, path: Path, steps: Sequence[str]) -> None:
        self._path = path
        self._live = Live(steps=tuple(steps))
        self._begun = self._what_begun = time.monotonic()
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="live.json", daemon=True)

    def begin(self, step: str) -> None:
        """Say that a step is made from now on."""
        self._begun = time.monotonic()
        self._live = Live(steps=self._live.steps, step=step)
        self._write()

    def finish(self) -> None:
        """Say that no step is made any more."""
        self._live = Live(steps=self._live.steps)
        self._write()

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take a report of progress; work that is over is forgotten."""
        if what != self._live.what:
            self._what_begun = time.monotonic()
        if done >= total:
            what, done, total, note = "", 0, 0, ""
        self._live = replace(self._live, what=what, done=done, total=total, note=note)

    def __enter__(self) -> LiveFile:
        """Write the file for the first time."""
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file, or say in it how the run ended."""
        self._over.set()
        self._thread.join()
        if error is None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            return
        said = INTERRUPTED if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        self._live = replace(self._live, ended=said or type(error).__name__)
        self._write()

    def _keep(self) -> None:
        written, since = self._live, time.monotonic()
        while not self._over.wait(LOOK):
            if self._live is not written or time.monotonic() - since >= PULSE:
                written, since = self._live, time.monotonic()
                self._write()

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        with self._writing:
            try:
                temporary.write_text(json.dumps(asdict(self._timed())), encoding="utf-8")
                temporary.replace(self._path)
            except OSError:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _timed(self) -> Live:
        now, live = time.monotonic(), self._live
        seconds = round(now - self._begun, 1) if live.step else 0.0
        return replace(live, seconds=seconds, what_seconds=round(now - self._what_begun, 1) if live.what else 0.0)
