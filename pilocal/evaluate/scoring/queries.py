"""Runs queries on a database, in a process of its own that can be ended; `sqlite.py` runs this file as a script.

Standard library only, and none of pilocal. A query may stay in one of SQLite's functions for longer than anyone waits,
where SQLite itself looks at no clock, and may ask for more memory than there is. Each line on standard input is a query
with its limits, and each line on standard output its rows, or what is wrong with it.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
"""What a query may do; everything else (writing, ATTACH, PRAGMA, loading extensions) is refused by SQLite itself."""

MIB = 1 << 20

LONGEST = MIB
"""Bytes of the longest text, blob or query."""

HEAP, PROCESS = 256 * MIB, 1024 * MIB
"""Bytes that SQLite may take, where it counts them, and that the process may, on Linux."""

RESULT = 64 * MIB
"""Characters of all rows of a result."""

INSTRUCTIONS = 500
"""How many of SQLite's instructions run between two looks at the clock."""


def open_database(path: Path) -> sqlite3.Connection:
    """Return a connection that can read, and nothing else."""
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST)
    connection.execute("pragma temp_store = memory")
    connection.execute(f"pragma hard_heap_limit = {HEAP}")
    connection.set_authorizer(authorize)
    return connection


def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """Tell SQLite whether a query may perform an action; `second` is the name of a function."""
    allowed = action in ALLOWED and second != "load_extension"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def rows_of(connection: sqlite3.Connection, query: str, seconds: float, max_rows: int) -> list[list[Any]]:
    """Return a query's rows, blobs as {"blob": hex}; raises ValueError for rows that are not accepted."""
    ends = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > ends, INSTRUCTIONS)
    rows, size = [], 0
    with closing(connection.execute(query)) as cursor:
        if cursor.description is None:
            raise ValueError("not a query")
        for row in cursor:
            rows.append([{"blob": value.hex()} if isinstance(value, bytes) else value for value in row])
            size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
            if len(rows) > max_rows:
                raise ValueError(f"more than {max_rows} rows ([scoring] max_rows)")
            if size > RESULT:
                raise ValueError(f"rows of more than {RESULT // MIB} MiB")
    return rows


def bound(seconds: float) -> None:
    """End this process after so many seconds of processor time from now, whoever is still there to end it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def lower(kind: int, limit: int) -> None:
    """Set a limit, unless it is lower already."""
    set_before = resource.getrlimit(kind)[1]
    most = limit if set_before == resource.RLIM_INFINITY else min(limit, set_before)
    resource.setrlimit(kind, (most, most))


def main() -> None:
    """Answer one query after the other until nobody asks."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        lower(kind, 0)
    if sys.platform == "linux":
        lower(resource.RLIMIT_AS, PROCESS)
    connection: sqlite3.Connection | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        bound(2 * asked["seconds"])
        try:
            connection = connection or open_database(Path(sys.argv[1]))
            said = json.dumps({"rows": rows_of(connection, asked["query"], asked["seconds"], asked["max_rows"])})
        except Exception as error:  # whatever a wrong query ends in
            said = json.dumps({"error": str(error) or type(error).__name__})
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        main()
