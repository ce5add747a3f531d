from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pilocal.run_folder.hashes import remembered_sha256


def make(path: Path, text: bytes, age: float) -> str:
    path.write_bytes(text)
    changed = path.stat().st_mtime - age
    os.utime(path, (changed, changed))
    return hashlib.sha256(text).hexdigest()


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return hash_of(path)

    monkeypatch.setattr("pilocal.run_folder.hashes.sha256_file", counted)
    file = tmp_path / "model.safetensors"
    first = make(file, b"one", age=60)
    assert [remembered_sha256(file, large=1) for _ in range(3)] == [first] * 3
    assert len(read) == 1
    second = make(file, b"two", age=30)
    assert [remembered_sha256(file, large=1) for _ in range(2)] == [second] * 2
    assert len(read) == 2
    remembered_sha256(file, large=4)
    assert len(read) == 3


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    first = make(file, b"one", age=0)
    assert remembered_sha256(file, large=1) == first
    state = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert remembered_sha256(file, large=1) == hashlib.sha256(b"two").hexdigest()


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
