"""A server with every fault, at several moments: what it says, and whether the same command serves the same again.

A moment is a file below the task's folder that the server opens as it starts, or a line that it appends to its log.
Meanwhile one client reads a long stream, and another asks.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.base.base import find_base
from pilocal.prompt.tokens import end_tokens
from tests.faults.injection import CLOCK, ERRORS, SIGNALS, VANISHED, Injection
from tests.faults.matrix import HALF, SAID, TWICE, last_line
from tests.forked import Forked
from tests.rival import free_port
from tests.served import make_run
from tests.tiny import make_adapter

QUERIES = ("what is red?", "and blue?", "green", "turn on the light", "what is it?")
SECONDS = 120.0
"""That a server may take to start, to answer, or to end."""


LOG = "log.jsonl"


def serve(words: list[str], folder: Path, fault: str | None, nth: int, aside: Path, counted: Path) -> None:
    """Run the command line with a fault at the nth moment; write to `counted`, after each line, how many there were."""
    from pilocal.cli import main
    from pilocal.server import RequestLog

    injection = Injection(folder, fault, nth, aside, reads=True)
    opened = RequestLog.__init__

    def watched(log: Any, *arguments: Any) -> None:
        opened(log, *arguments)
        log._file = Appended(log._file, injection, counted)

    RequestLog.__init__ = watched  # type: ignore[method-assign, assignment]
    injection.install()
    sys.argv[1:] = words
    main()


@dataclass(frozen=True)
class Appended:
    """The file of a log, each of whose lines is a moment."""

    file: Any
    injection: Injection
    counted: Path

    def write(self, data: bytes) -> int:
        """Append a line."""
        self.injection.moment(self.file.name)
        self.counted.write_text(str(self.injection.count))
        written: int = self.file.write(data)
        return written

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@dataclass(frozen=True)
class Served:
    """What came of a server."""

    started: bool
    answers: Sequence[str | None]
    """None where the server had gone."""
    status: int
    said: str


class ServeBench:
    """A folder in which a server is tried."""

    def __init__(self, folder: Path) -> None:
        """Make a task with what it ships, and have it served once without a fault."""
        folder.mkdir(parents=True)
        self.folder, self.task, self.port = folder, folder / "task", free_port()
        starter = find_base("starter", Path())
        self.banned = {str(token): -100 for token in end_tokens(starter.tokenizer)}
        make_run(self.task / "run", starter, make_adapter(folder / "adapter", starter))
        shutil.copytree(self.task, folder / "before")
        self.words = ["serve", f"{self.task / 'run'}", "--port", f"{self.port}", "--threads", "1", "--context", "512"]
        self.words += ["--grace", "1", "--log", f"{self.task / LOG}"]
        served = self._served(self._start(None, 0))
        assert None not in served.answers, served.said
        assert len({*served.answers}) == len(QUERIES)
        self.expected = served.answers
        self.writes = int((folder / "count").read_text())

    def cell(self, fault: str, nth: int) -> str:
        """Try one fault at the nth moment; return what is wrong, or nothing."""
        shutil.rmtree(self.task, ignore_errors=True)
        shutil.rmtree(self.folder / "aside", ignore_errors=True)
        shutil.copytree(self.folder / "before", self.task)
        if fault == HALF:
            return self._half(nth)
        if fault == TWICE:
            return self._two()
        served = self._served(self._start(fault, nth))
        if fault == VANISHED and (self.folder / "aside").exists():
            shutil.rmtree(self.task, ignore_errors=True)
            (self.folder / "aside").rename(self.task)
        return self._wrong(fault, served) or self._again()

    def _start(self, fault: str | None, nth: int, *more: str) -> Forked:
        where = (self.task, fault, nth, self.folder / "aside", self.folder / "count")
        return Forked(serve, [*self.words, *more], *where)

    def _served(self, process: Forked) -> Served:
        """Ask a server, beside a stream that goes on, and stop it; return what came of it."""
        port = wait(process)
        answers: list[str | None] = []
        if port is not None:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as stream:
                with suppress(OSError, http.client.HTTPException):
                    send(stream, {"stream": True, "max_tokens": 400, "logit_bias": self.banned})
                answers = [ask(port, query, self.banned) for query in QUERIES]
        if None not in answers:
            with suppress(ProcessLookupError):
                process.send(signal.SIGTERM)
        return Served(port is not None, answers, *process.ends(SECONDS)[::2])

    def _wrong(self, fault: str, served: Served) -> str:
        """Return what is wrong with how a server fared."""
        if "Traceback" in served.said:
            return f"a traceback: {last_line(served.said)}"
        if any(said not in (None, right) for said, right in zip(served.answers, self.expected, strict=False)):
            return f"other answers than before: {served.answers}"
        if fault in SIGNALS:
            return ""
        if served.started:
            return "" if served.answers == self.expected else f"an answer is missing: {served.said}"
        return self._refused(fault, served)

    def _refused(self, fault: str, served: Served) -> str:
        """Return what is wrong with how a server refused to start."""
        if fault == CLOCK or served.status != 1 or len(served.said.splitlines()) != 1:
            return f"exit status {served.status}: {served.said}"
        told = [SAID[fault], os.strerror(ERRORS[fault])] if fault in ERRORS else [self.task.name]
        return "" if any(each in served.said for each in told) else f"the line does not say it: {served.said!r}"

    def _again(self) -> str:
        """Serve by the same command, and return what is wrong."""
        served = self._served(self._start(None, 0))
        if served.answers != self.expected:
            return f"again: {served.answers or served.said}"
        with suppress(FileNotFoundError):
            for line in (self.task / LOG).read_text().splitlines():
                json.loads(line)
        return ""

    def _half(self, nth: int) -> str:
        """Cut one of the files in half: it is told of, or nothing is read of it."""
        files = [path for path in sorted(self.task.rglob("*")) if path.is_file() and path.stat().st_size > 1]
        cut = files[nth % len(files)]
        whole = cut.read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        served = self._served(self._start(None, 0))
        cut.write_bytes(whole)
        if served.started:
            return "" if served.answers == self.expected else f"{cut.name} is cut, but it is served: {served.answers}"
        lines = served.said.splitlines()
        good = served.status == 1 and len(lines) == 1 and cut.name in lines[0]
        return self._again() if good else f"{cut.name} is cut: exit status {served.status}: {served.said}"

    def _two(self) -> str:
        """Serve twice: on the same port, and then on another with the same log."""
        first = self._start(None, 0)
        port = wait(first)
        second = self._served(self._start(None, 0))
        if second.status != 1 or "cannot listen there" not in second.said or len(second.said.splitlines()) != 1:
            return f"on the same port: exit status {second.status}: {second.said}"
        other = self._served(self._start(None, 0, "--port", "0"))
        beside = self._served(first)
        if not other.answers == beside.answers == self.expected:
            return f"{other.answers} on another port, {beside.answers} on {port}"
        return self._again()


def wait(process: Forked) -> int | None:
    """Return the port of a server once it serves; None where it ends before."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := re.search(r"serving .* at http://[^ ]*:(\d+)/v1;", process.said("stderr")):
            return int(found[1])
        if not process.runs():
            return None
        time.sleep(0.02)
    raise TimeoutError(f"the server does not start: {process.said('stderr')}")


def send(connection: http.client.HTTPConnection, more: dict[str, Any], query: str = QUERIES[0]) -> Any:
    """Ask a query and return what answers it."""
    body = {"messages": [{"role": "user", "content": query}], "temperature": 0, "max_tokens": 12, **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def ask(port: int, query: str, banned: dict[str, int]) -> str | None:
    """Return the answer to a query, without some tokens; None where the server has gone."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        try:
            reply = send(connection, {"logit_bias": banned}, query)
            return str(json.loads(reply.read())["choices"][0]["message"]["content"])
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return None
