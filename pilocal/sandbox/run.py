"""Runs a program that nobody has read: without network, with a folder of its own, for so long and so much and no more.

The program is one process: it may have threads and may start no other program, so that nothing outlives it and every
limit holds for the whole of it. Linux isolates it by namespaces and a seccomp filter (`launcher.py`, `syscalls.py`),
macOS by sandbox-exec. Where neither can be had nothing is run.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pilocal.errors import SandboxError
from pilocal.sandbox import launcher
from pilocal.sandbox.syscalls import make_filter

MIB = 1 << 20
GRACE = 20.0
"""Seconds over its limit that a program's launcher gets, on a machine with much to do, before it is killed itself."""

FOLDER = "/program"
"""Where the program's folder lies on Linux, in the tree that it sees; nothing else may lie there."""

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives",
          "/etc/localtime", "/nix/store", "/gnu/store", "/home/linuxbrew/.linuxbrew")  # fmt: skip
"""What a program on Linux may see beside Python, where it is there."""

SEATBELT = """\
(version 1)
(allow default)
(deny network*)
(deny process-fork)
(deny mach-lookup)
(deny mach-register)
(deny iokit-open)
(deny ipc-posix*)
(deny ipc-sysv*)
(deny system-socket)
(deny signal)
(allow signal (target self))
(deny file-write*)
(allow file-write* (literal "/dev/null") (subpath (param "FOLDER")))
(deny file-read-data (subpath (param "HOME")))
(allow file-read-data (subpath (param "FOLDER")) (subpath (param "PREFIX")) (subpath (param "BASE")))
"""
"""The profile for macOS; of several rules that fit, the last counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Wall clock, and of processor time as much, rounded up."""
    memory_mb: int = 512
    disk_mb: int = 32
    """In its folder; a single file on macOS."""
    output: int = 64 * 1024
    """Bytes on standard output, and as many on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a program."""

    code: int
    """Its exit status; the negative number of the signal that ended it."""
    stdout: str
    """Up to the limit."""
    stderr: str
    limit: str | None
    """The limit that it was killed for: "time", "output" or "memory"; a program that merely gets no more has None."""
    seconds: float

    @property
    def timed_out(self) -> bool:
        """Whether it took longer than it may."""
        return self.limit == "time"


def run_apart(argv: Sequence[str], files: Mapping[str, str], limits: Limits) -> Outcome:
    """Run a program, with an absolute path, in a new folder that holds `files` and is its home; gone afterwards.

    Standard input is empty. Raises SandboxError when this machine offers no isolation.
    """
    with started(argv, files, limits) as program:
        return program.wait()


@contextmanager
def started(
    argv: Sequence[str], files: Mapping[str, str], limits: Limits, keep: Sequence[int] = ()
) -> Iterator[Program]:
    """Yield a program that runs as in `run_apart` and has the descriptors `keep` beside; it is ended afterwards."""
    # On Linux the program sees another folder there, which lives in memory.
    place = nullcontext(FOLDER) if launcher.LINUX else tempfile.TemporaryDirectory(prefix="pilocal-")
    with place as temporary:
        folder = temporary if launcher.LINUX else str(Path(temporary).resolve())
        spec: dict[str, Any] = {
            "argv": [*_prefix(folder), *argv],
            "environment": _libraries()
            | {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            "files": dict(files),
            "folder": folder,
            "seconds": limits.seconds,
            "memory": limits.memory_mb * MIB,
            "disk": limits.disk_mb * MIB,
            "keep": list(keep),
        }
        program = Program(spec | _isolation(), limits)
        try:
            yield program
        finally:
            program.end()


def _libraries() -> dict[str, str]:
    """Return what a Python may need to find its own library."""
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _prefix(folder: str) -> list[str]:
    if launcher.LINUX:
        return []
    names = {"FOLDER": folder, "HOME": str(Path.home().resolve()), "PREFIX": sys.prefix, "BASE": sys.base_prefix}
    return ["/usr/bin/sandbox-exec", *(f"-D{name}={path}" for name, path in names.items()), "-p", SEATBELT]


def _isolation() -> dict[str, Any]:
    """Return what the launcher needs to know on Linux; raises SandboxError on a system that is not known."""
    if not launcher.LINUX:
        if sys.platform != "darwin" or not Path("/usr/bin/sandbox-exec").exists():
            raise SandboxError(sys.platform, "no sandbox for programs here", fix="score on Linux or macOS")
        return {}
    if platform.machine() not in launcher.PIVOT_ROOT:
        fix = f"score on a machine with {' or '.join(launcher.PIVOT_ROOT)}"
        raise SandboxError(platform.machine(), "no sandbox for programs on this processor", fix=fix)
    links, readable = _tree()
    # Nobody has this number, whatever runs on the machine.
    apart = 0x60000000 + secrets.randbelow(1 << 24)
    user = (apart, apart) if os.geteuid() == 0 else None
    return {"links": links, "readable": readable, "user": user, "filter": make_filter(platform.machine()).hex()}


@cache
def _tree() -> tuple[dict[str, str], dict[str, str]]:
    """Return the symbolic links that a program sees in the root, and what else it sees with where that really lies."""
    paths = [Path(path) for path in SYSTEM]
    links = {str(path): str(path.readlink()) for path in paths if path.is_symlink() and path.parent == Path("/")}
    seen: dict[str, str] = {}
    for path in sorted({*SYSTEM, sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix)} - set(links)):
        if Path(path).exists() and not any(path.startswith(f"{above}/") for above in seen):
            seen[path] = os.path.realpath(path)
    return links, seen


class Program:
    """A program that runs apart, and its launcher."""

    def __init__(self, spec: dict[str, Any], limits: Limits) -> None:
        """Start it; what must be said to the launcher is in `spec`."""
        self._limits, self._began = limits, time.monotonic()
        reading, writing = os.pipe()
        self._control = os.fdopen(reading, "rb")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing, *spec["keep"]),
                env=_libraries(),
                # The terminal's Ctrl-C is for pilocal, which then ends this.
                start_new_session=True,
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            os.close(writing)
        assert self._process.stdin
        try:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(spec | {"control": writing}).encode() + b"\n")
                self._process.stdin.flush()
        except BaseException:
            self.end()
            raise

    def stop(self) -> None:
        """End it, if it has not ended."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> None:
        """End it, and wait until nothing of it is left."""
        self.stop()
        with self._process:
            self._control.close()
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def wait(self) -> Outcome:
        """Wait for its end, and tell it; raises SandboxError where it could not be kept apart."""
        texts, flooded = self._read()
        said = self._control.read()
        self.end()
        stdout, stderr = (bytes(text[: self._limits.output]).decode("utf-8", "replace") for text in texts)
        code = self._process.returncode
        result: dict[str, Any] = {"broken": stderr.strip()[-300:] or f"exit status {code}"}
        if said:
            result = json.loads(said)
        elif code < 0:
            # The launcher was killed: by us, since it was long overdue, or by a machine that is out of memory.
            result = {"code": code, "limit": "time", "seconds": time.monotonic() - self._began}
        if "broken" in result:
            raise SandboxError("sandbox", "cannot keep a program apart here", got=result["broken"], fix=_advice())
        limit = "output" if flooded else result["limit"]
        return Outcome(code=result["code"], stdout=stdout, stderr=stderr, limit=limit, seconds=result["seconds"])

    def _read(self) -> tuple[tuple[bytearray, bytearray], bool]:
        """Return what was written to standard output and error, and whether it was too much; that ends the program."""
        texts, flooded, process = (bytearray(), bytearray()), False, self._process
        ends = time.monotonic() + self._limits.seconds + GRACE
        with selectors.DefaultSelector() as selector:
            for pipe, text in zip((process.stdout, process.stderr), texts, strict=True):
                assert pipe
                selector.register(pipe, selectors.EVENT_READ, text)
            while selector.get_map():
                ready = selector.select(max(0.0, ends - time.monotonic()))
                if not ready:
                    process.kill()
                    ends += GRACE
                for key, _ in ready:
                    piece = os.read(key.fd, 1 << 16)
                    if not piece:
                        selector.unregister(key.fileobj)
                    elif len(key.data) <= self._limits.output:
                        key.data.extend(piece)
                    if len(key.data) > self._limits.output and not flooded:
                        flooded = True
                        self.stop()
        return texts, flooded


def _advice() -> str:
    """Return what to do where a program could not be kept apart."""
    if not launcher.LINUX:
        return "/usr/bin/sandbox-exec must be allowed to run"
    for name, good, much in (
        ("kernel/apparmor_restrict_unprivileged_userns", "0", "0"),
        ("kernel/unprivileged_userns_clone", "1", "1"),
        ("user/max_user_namespaces", None, "10000"),
    ):
        with suppress(OSError):
            value = Path("/proc/sys", name).read_text(encoding="ascii").strip()
            if value == "0" if good is None else value != good:
                return f"allow user namespaces: sudo sysctl -w {name.replace('/', '.')}={much}"
    return "it takes Linux 5.12 with user namespaces; in a container, --security-opt seccomp=unconfined may be missing"
