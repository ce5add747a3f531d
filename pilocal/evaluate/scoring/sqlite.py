"""Execution accuracy: an answer is right if its query returns the rows of the reference, however it is worded."""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.errors import InputError
from pilocal.evaluate.scoring.metrics import Metric
from pilocal.progress import Progress, silent
from pilocal.task import Example, Scoring
from pilocal.task.text import absent

ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""What a query may do; everything else (writing, ATTACH, PRAGMA, loading extensions) is refused by SQLite itself."""

LONGEST = 1 << 20
"""Bytes of the longest text, blob or query."""

TIMEOUT = 10.0
"""Seconds for one query, unless `[scoring] timeout` says otherwise."""

INSTRUCTIONS = 10_000
"""How many of SQLite's instructions run between two looks at the clock."""

TOLERANCE = 1e-6
"""Relative difference below which two numbers are the same, unless both are whole."""

ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)

Rows = list[tuple[Any, ...]]


class Refused(Exception):
    """A query that runs, but whose rows are not accepted."""


WRONG = (sqlite3.Error, UnicodeError, Refused)
"""What a wrong query may end in."""


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
        try:
            with self._open() as connection:
                connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise InputError(self.path, f"not an SQLite database: {error}", fix="correct [scoring] database") from None

    def check(self, examples: Sequence[Example]) -> None:
        """Raise InputError if reference queries do not run: how many, and what is wrong with the first."""
        faults: list[tuple[Example, str]] = []
        with self._open() as connection:
            for example in examples:
                try:
                    self._rows(connection, example.answer)
                except WRONG as error:
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
        with self._open() as connection:
            for number, (answer, example) in enumerate(zip(answers, examples, strict=True)):
                wanted = self._rows(connection, example.answer)
                got = self._try(connection, answer)
                if got is not None:
                    marks[number] = same_rows(got, wanted, ordered=is_ordered(example.answer))
        return marks

    def objection(self, answer: str) -> str | None:
        """Refuse a query that does not run."""
        with self._open() as connection:
            return None if self._try(connection, answer) is not None else "the query does not run"

    def agree(self, answers: Sequence[str], others: Sequence[str], queries: Sequence[str]) -> list[bool]:
        """Tell of each query whether it returns the rows of another."""
        found = []
        with self._open() as connection:
            for answer, other in zip(answers, others, strict=True):
                got, wanted = self._try(connection, answer), self._try(connection, other)
                both = got is not None and wanted is not None
                found.append(both and same_rows(got or [], wanted or [], ordered=is_ordered(other)))
        return found

    def files(self) -> list[Path]:
        """Return the database."""
        return [self.path]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        uri = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
            connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST)
            connection.execute("pragma temp_store = memory")
            connection.set_authorizer(_authorize)
            yield connection

    def _try(self, connection: sqlite3.Connection, query: str) -> Rows | None:
        """Return a query's rows; None where it does not run."""
        try:
            return self._rows(connection, query)
        except WRONG:
            return None

    def _rows(self, connection: sqlite3.Connection, query: str) -> Rows:
        """Return a query's rows; raises one of WRONG."""
        ends = time.monotonic() + (self.scoring.timeout or TIMEOUT)
        connection.set_progress_handler(lambda: time.monotonic() > ends, INSTRUCTIONS)
        with closing(connection.execute(query)) as cursor:
            if cursor.description is None:
                raise Refused("not a query")
            rows: Rows = cursor.fetchmany(self.scoring.max_rows + 1)
        if len(rows) > self.scoring.max_rows:
            raise Refused(f"more than {self.scoring.max_rows} rows ([scoring] max_rows)")
        return rows


def _authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Tell SQLite whether a query may perform an action; `second` is the name of a function."""
    allowed = action in ALLOWED and second != "load_extension"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


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
