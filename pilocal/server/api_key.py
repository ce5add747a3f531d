"""The key that clients must send. It is a secret: no error, log line or traceback shows it or a part of it."""

from __future__ import annotations

import hmac
from pathlib import Path

from pilocal.errors import InputError
from pilocal.task.text import MARK


class ApiKey:
    """A key that can be compared, but not printed.

    >>> ApiKey("opensesame"), ApiKey("opensesame").matches("opensesame")
    (ApiKey(hidden), True)
    """

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def matches(self, given: str) -> bool:
        """Tell whether a client sent this key, in a time that says nothing of how much of it was right."""
        return hmac.compare_digest(given.encode(), self._key)

    def __repr__(self) -> str:
        return "ApiKey(hidden)"


def read_api_key(path: Path) -> ApiKey:
    """Return the key that a file holds.

    Raises InputError when there is no such file, or it holds anything but one line of printable ASCII. The error names
    the file only if there is one: somebody may have given the key itself in its place.
    """
    fix = "give a file that holds the key"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError("--api-key-file", "no such file", fix=fix) from None
    except OSError as error:
        raise InputError("--api-key-file", f"cannot read the file: {error.strerror}", fix=fix) from None
    key = raw.removeprefix(MARK.encode()).strip()
    if not key:
        raise InputError(path, "the file is empty", fix="write the key into it")
    if not all(0x20 <= byte < 0x7F for byte in key):
        raise InputError(path, "an API key is plain ASCII text on one line", fix="write only the key into this file")
    return ApiKey(key.decode())
