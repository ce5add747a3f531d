"""llama.cpp's own server, where there is one: PILOCAL_LLAMA_SERVER names it, or it is on the PATH."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PILOCAL_LLAMA_SERVER"
PATIENCE = 120
"""Seconds that it may take to load its files."""


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A llama-server that answers."""

    port: int
    process: subprocess.Popen[bytes]
    said: Path
    """What it said."""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


def llama_server() -> str | None:
    """Return the program, or None where there is none."""
    return shutil.which(os.environ.get(VARIABLE) or "llama-server")


@contextmanager
def started(
    script: Path, folder: Path, *options: object, environment: Mapping[str, str] | None = None
) -> Iterator[LlamaServer]:
    """Run an exported llama-server.sh with more options on a free port, until the block ends."""
    program, port, said = llama_server(), free_port(), folder / "llama-server.txt"
    assert program is not None
    with said.open("wb") as output:
        process = subprocess.Popen(
            [str(script), "--port", str(port), *map(str, options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**(os.environ if environment is None else environment), "LLAMA_SERVER": program},
        )
    try:
        server = LlamaServer(port, process, said)
        _wait(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(server: LlamaServer) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"llama-server did not start: {server.said.read_text(errors='replace')[-2000:]}")
