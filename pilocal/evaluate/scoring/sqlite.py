"""Execution accuracy: an answer is right if its query returns the rows of the reference, however it is worded."""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring import queries
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring
from pilocal.task.text import absent

TIMEOUT = 10.0
"""Seconds for one query, unless `[scoring] timeout` says otherwise."""

SPARE = 5.0
"""Seconds beyond twice its limit after which a query's process is killed; a busy machine is often late."""

TOLERANCE = 1e-6
"""Relative difference below which two numbers are the same, unless both are whole."""

ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)

Rows = list[tuple[Any, ...]]


class Refused(Exception):
    """A query that does not run, or whose rows are not accepted."""


def make(scoring: Scoring, folder: Path) -> Metric:
    """Return the metric; raises InputError if there is no database."""
    return Sqlite(scoring, folder)


class Sqlite(Metric):
    """Execution accuracy on a database that is opened read-only.

    Rows are compared as a multiset, or in order if the reference has an ORDER BY outside all brackets. An answer is
    wrong if it is not a query, changes something, takes longer than `timeout` or returns more than `max_rows` rows.
    """

    def __init__(self, scoring: Scoring, folder: Path) -> None:
        """Open the database once; raises InputError if `[scoring] database` is missing or not a database."""
        if scoring.database is None:
            where = f"{folder / 'task.toml'} [scoring] database"
            raise InputError(where, "sqlite needs a database", fix='write database = "FILE", relative to the task')
        self.path, self.scoring = folder / scoring.database, scoring
        if not self.path.is_file():
            raise InputError(self.path, absent(self.path, "no such database"), fix="correct [scoring] database")
        self._worker = Worker(self.path.resolve())
        weakref.finalize(self, self._worker.stop)
        try:
            self._rows("select count(*) from sqlite_master")
        except Refused as error:
            raise InputError(self.path, f"not an SQLite database: {error}", fix="correct [scoring] database") from None

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError if reference queries do not run: how many, and what is wrong with the first."""
        faults: list[tuple[Example, str]] = []
        for example in examples:
            try:
                self._rows(example.answer)
            except Refused as error:
                faults.append((example, str(error)))
        if faults:
            first, why = faults[0]
            what = f"{len(faults)} of {len(examples)} reference queries do not run; the first, {first.id}: {why}"
            raise InputError(self.path, what, got=first.answer, fix="correct or remove these records")

    def marks(
        self, answers: Sequence[str], examples: Sequence[Example], progress: Progress = silent
    ) -> NDArray[np.float64]:
        """Return 1 for an answer that is right and 0 for one that is not, (N, 1)."""
        marks = np.zeros((len(answers), 1))
        for number, (answer, example) in enumerate(zip(answers, examples, strict=True)):
            wanted = self._rows(example.answer)
            got = self._try(answer)
            if got is not None:
                marks[number] = same_rows(got, wanted, ordered=is_ordered(example.answer))
        return marks

    def objection(self, answer: str) -> str | None:
        """Refuse a query that does not run."""
        return None if self._try(answer) is not None else "the query does not run"

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each query whether it returns the rows of another."""
        found = []
        for answer, other in zip(answers, others, strict=True):
            got, wanted = self._try(answer), self._try(other)
            both = got is not None and wanted is not None
            found.append(both and same_rows(got or [], wanted or [], ordered=is_ordered(other)))
        return found

    def files(self) -> list[Path]:
        """Return the database."""
        return [self.path]

    def _try(self, query: str) -> Rows | None:
        """Return a query's rows; None where it does not run."""
        try:
            return self._rows(query)
        except Refused:
            return None

    def _rows(self, query: str) -> Rows:
        """Return a query's rows; raises Refused where it does not run."""
        seconds, max_rows = self.scoring.timeout or TIMEOUT, self.scoring.max_rows
        said = self._worker.ask({"query": query, "seconds": seconds, "max_rows": max_rows}, 2 * seconds + SPARE)
        if "error" in said:
            raise Refused(said["error"])
        return [tuple(map(_value, row)) for row in said["rows"]]


class Worker:
    """The process that runs queries (`queries.py`), started when it is first needed and after it was ended."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, question: dict[str, Any], patience: float) -> dict[str, Any]:
        """Return what it says, or the error of a query that takes longer than some seconds, or too much memory."""
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin
            said = b""
            try:
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(question).encode() + b"\n")
                    process.stdin.flush()
                said = self._line(process, patience)
            finally:
                if not said.endswith(b"\n"):
                    self._end()
            if not said.endswith(b"\n"):
                return {"error": "interrupted: it took too long, or too much memory"}
            found: dict[str, Any] = json.loads(said)
            return found

    def stop(self) -> None:
        """End it, if it is there."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        """Return a new process, which Ctrl-C does not reach and which ends with this one."""
        command = [sys.executable, "-I", "-S", queries.__file__, str(self._database)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, start_new_session=True)

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> bytes:
        """Return a line of its output, or what there is of one when it ends or the time is over."""
        ends, pieces = time.monotonic() + patience, [b""]
        assert process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not pieces[-1].endswith(b"\n") and selector.select(max(0.0, ends - time.monotonic())):
                pieces.append(os.read(process.stdout.fileno(), 1 << 16))
                if not pieces[-1]:
                    break
        return b"".join(pieces)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass


def _value(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value


def is_ordered(query: str) -> bool:
    """Return whether a query has an ORDER BY outside all brackets and quoted texts.

    >>> is_ordered("select a from t order by a"), is_ordered("select a from (select a from t order by a limit 1)")
    (True, False)
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "''", query)
    while bare != (without := re.sub(r"\([^()]*\)", "", bare)):
        bare = without
    return ORDERED.search(bare) is not None


def same_rows(got: Rows, wanted: Rows, *, ordered: bool) -> bool:
    """Return whether two results are equal, as lists or as multisets; numbers may differ by rounding.

    >>> same_rows([(1, "a"), (2.0, "b")], [(2, "b"), (1, "a")], ordered=False)
    True
    """
    if len(got) != len(wanted):
        return False
    if not ordered:
        got, wanted = sorted(got, key=_place), sorted(wanted, key=_place)
    return all(len(a) == len(b) and all(map(_same, a, b)) for a, b in zip(got, wanted, strict=True))


def _place(row: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
    """Return a sort key for values of any types; numbers sort by their rounded value."""
    return tuple(
        ("number", float(f"{value:.5g}")) if isinstance(value, int | float) else (type(value).__name__, value or "")
        for value in row
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return False
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(a) is type(b) and bool(a == b)
