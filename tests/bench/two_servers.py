"""pilocal's server and llama.cpp's own with the same files: copies of a finished run, as one task or as several."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pilocal.export.llama_server import QUERY, REQUESTS, SCRIPT, write_llama_server
from pilocal.flow.opening import task_file_of
from pilocal.run_folder.shipped import Shipped, read_shipped
from pilocal.task import load_task
from tests.bench.http_load import post
from tests.rival import llama_server, started

OURS, RIVAL = "pilocal", "llama-server"
QUEUE = 256
"""Requests that may wait in pilocal's server: the rival lets any number wait."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured, and how."""

    run: Path
    clients: tuple[int, ...] = (1, 4, 16, 64)
    requests: int = 400
    """Of each measurement."""
    repeats: int = 5
    slots: int = 16
    """Requests that each server answers at once."""
    threads: int = os.cpu_count() or 1
    context: int = 512
    """Of each slot, in tokens, where no long prompt comes."""
    adapters: int = 8
    long: int = 4000
    """Tokens of the long prompt, at most; what the base's context leaves room for."""
    total: int = 20_000
    """Requests while the memory is watched."""

    @cached_property
    def queries(self) -> list[str]:
        """The queries of the run's training examples."""
        return [example.query for example in read_shipped(self.run).examples()]


@dataclass(frozen=True, slots=True)
class Service:
    """A server that answers."""

    port: int
    pid: int
    bodies: Mapping[str, Mapping[str, Any]]
    """The request to each task, as JSON."""

    def request(self, name: str, query: str, **more: Any) -> bytes:
        """Return the request that asks a task a query."""
        body = {**self.bodies[name], **more}
        *before, last = body["messages"]
        return post(json.dumps({**body, "messages": [*before, {**last, "content": query}]}).encode())


def copied(run: Path, folder: Path, name: str) -> Shipped:
    """Return what a run ships as a task of another name, in a run folder of its own; large files are links."""
    shipped = read_shipped(run)
    export = folder / name / "export"
    export.mkdir(parents=True)
    for path in shipped.folder.iterdir():
        if path.suffix == ".gguf":
            (export / path.name).symlink_to(path.resolve())
        elif path.is_file():
            shutil.copyfile(path, export / path.name)
    changed = replace(shipped, folder=export, name=name)
    changed.save_alone()
    return changed


@contextmanager
def both(setting: Setting, tasks: int = 1, *, slots: int | None = None) -> Iterator[dict[str, Service]]:
    """Start both servers with copies of the run as so many tasks; pilocal's alone where there is no llama-server."""
    limit = load_task(task_file_of(setting.run)).generation.max_tokens
    slots = slots or setting.slots
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pilocal-bench-")))
        shipped = [copied(setting.run, folder, f"task-{number}") for number in range(tasks)]
        write_llama_server(shipped, [limit] * tasks)
        export = shipped[0].folder
        listed = json.loads((export / REQUESTS).read_text(encoding="utf-8"))["requests"]
        how = ("--threads", setting.threads, "--parallel", slots)
        runs = [each.folder.parent for each in shipped]
        port, pid = stack.enter_context(our_server(runs, folder, *how, "--context", setting.context))
        asked = {"messages": [{"role": "user", "content": QUERY}], "temperature": 0, "max_tokens": limit}
        ours = {each.name: {"model": each.name, **asked} for each in shipped}
        services = {OURS: Service(port, pid, ours)}
        if llama_server():
            rooms = ("--threads-batch", setting.threads, "--ctx-size", slots * setting.context)
            rival = stack.enter_context(started(export / SCRIPT, folder, *how, *rooms))
            services[RIVAL] = Service(rival.port, rival.process.pid, listed)
        yield services


@contextmanager
def our_server(runs: Sequence[Path], folder: Path, *options: object) -> Iterator[tuple[int, int]]:
    """Start pilocal's server on a free port until the block ends; yield the port and the process."""
    said = folder / "pilocal.txt"
    command = [sys.executable, "-m", "pilocal", "serve", *runs, "--port", 0, "--queue", QUEUE, *options]
    with said.open("wb") as output:
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=subprocess.STDOUT)
    try:
        while not (found := re.search(r"at http://[^ ]*:(\d+)/v1;", said.read_text(errors="replace"))):
            if process.poll() is not None:
                raise AssertionError(f"pilocal's server did not start: {said.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)
