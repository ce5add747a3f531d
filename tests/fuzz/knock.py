"""One input at one door: what went wrong, if anything did.

A fault is an exception that is none of pilocal's errors and none of Click's, more processor time or memory than the
door allows, or a write outside of the folder that was given. Writes are seen where Python makes them.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import Any

import click

import pilocal
from pilocal.errors import PilocalError
from tests.fuzz.door import Door, Files

WRITERS = ("mkdir", "remove", "rename", "rmdir", "link", "symlink", "truncate", "chmod", "utime", "chown")
"""The functions of `os` that change something, each with paths as its first arguments."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

PACKAGE = f"{Path(pilocal.__file__).parent}{os.sep}"

ALLOWED = ("/dev/null", "/dev/tty")


class Hang(BaseException):
    """Raised in the midst of a knock that takes too long; no `except Exception` swallows it."""


class Outside(BaseException):
    """Raised in the midst of a knock that writes elsewhere."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault: where to find it again, and what it is."""

    door: str
    what: str
    """One line."""
    kind: str
    """What inputs with the same fault have in common: the exception and the place in the package."""
    trace: str


class _Watch:
    """Refuses to write outside of a folder while there is one; a hook stays for good, so there is one for all."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.hooked = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = arguments
            paths = (path,) if flags & WRITING else ()
        elif event.startswith("os.") and event[3:] in WRITERS:
            paths = arguments[:2] if event[3:] in ("rename", "link") else arguments[:1]
            paths = arguments[1:2] if event[3:] == "symlink" else paths
        else:
            return
        for each in paths:
            self._check(each, event)

    def _check(self, path: Any, event: str) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor, which was opened before
        named = os.fsdecode(path)
        real = os.path.realpath(named)
        inside = self.folder is not None and (real == self.folder or real.startswith(self.folder + os.sep))
        if not inside and named not in ALLOWED:
            raise Outside(f"{event} {named}")


_WATCH = _Watch()


@contextmanager
def _only_in(folder: Path) -> Iterator[None]:
    if not _WATCH.hooked:
        sys.addaudithook(_WATCH.hook)
        _WATCH.hooked = True
    _WATCH.folder = os.path.realpath(folder)
    try:
        yield
    finally:
        _WATCH.folder = None


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise Hang once the block has taken so much processor time: on a busy machine nothing else counts."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def _limited(grow: int) -> Iterator[None]:
    """Let no allocation succeed that takes the process so many bytes above what it has; on Linux only."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    has = int(statm.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + grow, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def lay(files: Files, folder: Path) -> None:
    """Make a folder hold these files and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            rmtree(each, ignore_errors=True)
        else:
            each.unlink()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def knock(door: Door, files: Files, folder: Path) -> Finding | None:
    """Give an input to a door in a folder of its own; return what went wrong, None if nothing did."""
    if door.lay:
        lay(files, folder)
    try:
        with warnings.catch_warnings(), _limited(door.memory), _only_in(folder), _within(door.seconds):
            warnings.simplefilter("error")
            door.knock(folder, files)
    except (PilocalError, click.ClickException, click.Abort, click.exceptions.Exit) as error:
        return _unlike_a_line(door, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else it is, it is a fault
        return _finding(door, error)
    return None


def _unlike_a_line(door: Door, error: BaseException) -> Finding | None:
    """Return what is wrong with the words of an error of pilocal's own: they must be text that a terminal takes."""
    try:
        str(error).encode()
    except UnicodeEncodeError as broken:
        return _finding(door, broken)
    return None


def _finding(door: Door, error: BaseException) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "elsewhere"
    said = " ".join(str(error).split())[:160]
    kind = f"{type(error).__name__} in {where}"
    trace = "".join(traceback.format_exception(error, limit=-12))
    return Finding(door.name, f"{kind}: {said}", re.sub(r"\d+", "N", kind), trace[-4000:])
