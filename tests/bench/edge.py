"""A finished run on an edge box, with llama.cpp's server alone: `python -m tests.bench.edge RUN`, on Linux, as root.

The server gets one core and 1 GiB, its mapped files counted: a control group of the kernel holds it to that.
PILOCAL_LLAMA_SERVER names the server, or it is on the PATH. The files should be the run's own, so that they are read
anew: `pilocal export RUN --copy`. Times are the server's own figures, medians of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from pilocal.export.llama_server import SCRIPT, write_llama_server
from pilocal.run_folder.shipped import BARE_BASE, read_shipped
from tests.rival import VARIABLE, llama_server, started

MEMORY = 1 << 30
"""Bytes that the server may take."""

CONTEXT, ANSWER, PROMPT = 2048, 32, 1000
"""Tokens of the server's context, of an answer, and, about, of the prompt that is no longer sent."""

REPEATS = 9

GROUPS = Path("/sys/fs/cgroup")
VERSIONS = (("memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"), ("", "memory.max", "memory.peak"))
"""Of control groups, 1 and 2: where they lie, and their files for the limit and for the peak."""


@dataclass(frozen=True, slots=True)
class Group:
    """A control group that holds its processes to MEMORY."""

    folder: Path
    peak_file: str

    def wrap(self, program: str, wrapper: Path) -> None:
        """Write a script that enters the group and goes on as the program, on the first core."""
        enter = f"echo $$ > {shlex.quote(str(self.folder / 'cgroup.procs'))}"
        wrapper.write_text(f'#!/bin/sh\nset -e\n{enter}\nexec taskset -c 0 {shlex.quote(program)} "$@"\n')
        wrapper.chmod(0o755)

    @property
    def peak(self) -> int:
        """The most bytes that the processes took, mapped files included."""
        return int((self.folder / self.peak_file).read_text())


@contextmanager
def group() -> Iterator[Group]:
    """Yield a group that is gone at the end; raises SystemExit where none can be made."""
    for above, limit, peak in VERSIONS:
        folder = GROUPS / above / f"pilocal-edge-{os.getpid()}"
        try:
            folder.mkdir()
            with (folder / limit).open("r+") as file:  # which is there already
                file.write(str(MEMORY))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        try:
            yield Group(folder, peak)
        finally:
            folder.rmdir()
        return
    sys.exit("no control group can be made here: run this on Linux, as root")


def edge(run: Path) -> dict[str, Any]:
    """Return what a run's files take: MiB, milliseconds to the first token, and tokens per second."""
    shipped, program = read_shipped(run), llama_server()
    if program is None:
        sys.exit(f"{VARIABLE} names no llama-server, and none is on the PATH")
    files = [path for path in (shipped.served_path, shipped.adapter_path) if path]
    with tempfile.TemporaryDirectory() as temporary, group() as box:
        wrapper = Path(temporary) / "llama-server"
        box.wrap(str(Path(program).resolve()), wrapper)
        requests = json.loads(write_llama_server([shipped], [ANSWER])[1].read_text(encoding="utf-8"))["requests"]
        for path in files:
            forget(path)
        how = ("--threads", 1, "--threads-batch", 1, "--parallel", 1, "--ctx-size", CONTEXT)
        with instead(wrapper), started(shipped.folder / SCRIPT, Path(temporary), *how) as server:
            queries = [example.query for example in shipped.examples()]
            prompts = [f"{long_text(server.url, queries)} {query}" for query in queries[: REPEATS // 3]]
            bare, full = requests[shipped.name], requests.get(BARE_BASE, requests[shipped.name])
            found = {
                "bare query": asked(server.url, bare, [queries[n % len(queries)] for n in range(REPEATS)]),
                "whole prompt": asked(server.url, full, prompts),
                "mib": resident(server.process.pid) | {"peak of the group": mib(box.peak)},
            }
    return {"run": str(run), "files_mib": [mib(path.stat().st_size) for path in files], **found}


@contextmanager
def instead(program: Path) -> Iterator[None]:
    """Let another program be the llama-server that is started."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(program)
    yield
    del os.environ[VARIABLE]
    if before is not None:
        os.environ[VARIABLE] = before


def forget(path: Path) -> None:
    """Take a file out of the kernel's cache, so that the group pays for reading it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def long_text(url: str, queries: Sequence[str]) -> str:
    """Return queries one after the other, of about PROMPT tokens."""
    text = " ".join(queries)
    count = len(httpx.post(f"{url}/tokenize", json={"content": text}).json()["tokens"])
    words = (text + " ") * (PROMPT // count + 1)
    return words[: len(text) * PROMPT // count]


def asked(url: str, request: Mapping[str, Any], queries: Sequence[str]) -> dict[str, float]:
    """Ask each query, nothing of it kept from before, and return the medians."""
    found: list[dict[str, float]] = []
    *before, last = request["messages"]
    for query in queries:
        body = {**request, "messages": [*before, {**last, "content": query}], "max_tokens": ANSWER}
        body |= {"ignore_eos": True, "cache_prompt": False}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).raise_for_status()
        found.append(reply.json()["timings"])
    names = {"prompt_n": "prompt tokens", "prompt_ms": "first token, ms", "prompt_per_second": "read per second"}
    names |= {"predicted_per_second": "written per second"}
    return {name: round(median(each[key] for each in found), 1) for key, name in names.items()}


def resident(pid: int) -> dict[str, float]:
    """Return the MiB of a process that are resident: all, its own, and those of mapped files."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", status, flags=re.MULTILINE)}
    names = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped files"}
    return {name: mib(kib[key] * 1024) for key, name in names.items()}


def mib(number: int) -> float:
    """Return bytes as MiB."""
    return round(number / 2**20, 1)


def main() -> None:
    """Measure each run and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for run in parser.parse_args().runs:
        print(json.dumps(edge(run), indent=2), flush=True)


if __name__ == "__main__":
    main()
