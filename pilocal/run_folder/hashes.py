"""What a file or some values are known by; hashes of large files are remembered, since gigabytes take seconds."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pilocal.errors import RunError
from pilocal.run_folder.files import MISSHAPEN, cache_folder, read_json, write_json

LARGE = 64 << 20
"""Bytes from which on a hash is worth remembering."""

SHA256 = re.compile("[0-9a-f]{64}")

SETTLED = 2.0
"""Seconds after which a file that changes again gets another time of change, on every file system."""


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of JSON-able parts, as hex; the same parts give the same text on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def remembered_sha256(path: Path, large: int = LARGE) -> str:
    """Return the SHA-256 of a file; one of `large` bytes or more is read again only when its size or time changed."""
    before = path.stat()
    if before.st_size < large:
        return sha256_file(path)
    note = cache_folder() / "hashes" / f"{fingerprint(str(path.resolve()))[:32]}.json"
    state = {"path": str(path.resolve()), "size": before.st_size, "changed": before.st_mtime_ns}
    with suppress(*MISSHAPEN):
        known = read_json(note)
        if {name: known[name] for name in state} == state and SHA256.fullmatch(known["sha256"]):
            return str(known["sha256"])
    sha256 = sha256_file(path)
    if path.stat().st_mtime_ns == before.st_mtime_ns and time.time() - before.st_mtime > SETTLED:
        with suppress(OSError, RunError):
            write_json(note, state | {"sha256": sha256})
    return sha256


def hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each named file."""
    return {name: sha256_file(path) for name, path in files.items()}
