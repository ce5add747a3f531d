"""Broken inputs at every door: those that once went wrong, and a fixed number of new ones (`just fuzz`: more)."""

from __future__ import annotations

import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from random import Random

import pytest

from pilocal.errors import InputError, PilocalError
from tests.fuzz.corpus import Case, line_of, read_corpus, shortened
from tests.fuzz.door import Door, Files, doors
from tests.fuzz.knock import Finding, knock, lay


@pytest.mark.parametrize("name", doors())
def test_no_broken_input_ends_in_a_traceback_a_hang_or_a_write_elsewhere(name: str, tmp_path: Path) -> None:
    door = doors()[name]
    for seed in range(1, door.short + 1):
        finding = knock(door, door.input(seed), tmp_path / "input")
        assert not finding, f"`python -m tests.fuzz --seed {seed} {name}`: {finding.what}\n{finding.trace}"


@pytest.mark.parametrize("name", doors())
def test_a_good_input_is_taken(name: str, tmp_path: Path) -> None:
    door = doors()[name]
    for seed in range(3):
        files = door.make(Random(f"good:{seed}"))
        assert door.input(seed) == door.input(seed)
        if door.lay:
            lay(files, tmp_path / "input")
        with warnings.catch_warnings(), nullcontext() if door.whole else suppress(PilocalError):
            warnings.simplefilter("ignore", UserWarning)
            door.knock(tmp_path / "input", files)


@pytest.mark.parametrize("name", sorted({case.door for case in read_corpus()}))
def test_no_input_that_once_went_wrong_does_so_again(name: str, tmp_path: Path) -> None:
    for case in read_corpus():
        if case.door == name:
            finding = knock(doors()[name], case.files, tmp_path / "input")
            assert not finding, f"{case.what}\n{finding.trace}"


def broken(knocks: object, **settings: float) -> Door:
    """Return a door that reads nothing and does something wrong instead."""
    assert callable(knocks)
    return Door(name="x", make=lambda _: {}, mutate=lambda files, _: files, knock=knocks, **settings)  # type: ignore


def found(tmp_path: Path, knocks: object, **settings: float) -> str:
    finding = knock(broken(knocks, **settings), {"a.txt": b"x"}, tmp_path / "inside")
    return finding.what if finding else "nothing"


def test_every_kind_of_fault_is_seen(tmp_path: Path) -> None:
    def loop(folder: Path, files: Files) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    def refuse(folder: Path, files: Files) -> None:
        raise InputError(folder, "no")

    outside = tmp_path / "outside"
    assert found(tmp_path, lambda *_: int("x")).startswith("ValueError in elsewhere: invalid literal")
    assert found(tmp_path, lambda *_: list[int]().pop()).startswith("IndexError")
    assert found(tmp_path, loop, seconds=0.1).startswith("Hang in elsewhere: more than 0.1 s of processor time")
    assert found(tmp_path, lambda *_: bytearray(2**28), memory=2**26).startswith("MemoryError")
    assert found(tmp_path, lambda folder, _: (folder / "../outside").write_text("x")).startswith("Outside in elsewhere")
    assert found(tmp_path, lambda *_: outside.mkdir()).startswith("Outside in elsewhere: os.mkdir")
    assert found(tmp_path, lambda folder, _: (folder / "a.txt").rename(outside)).startswith("Outside")
    assert not outside.exists()
    assert found(tmp_path, lambda folder, _: (folder / "b").write_text((folder / "a.txt").read_text())) == "nothing"
    assert found(tmp_path, refuse) == "nothing"
    assert found(tmp_path, lambda folder, _: list(folder.parent.iterdir())) == "nothing"


def test_a_case_of_the_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    case = Case("records", "ValueError in x.py:y: z", {"a": b"\xff\x00", "b": "é\u2028\n".encode()})
    (tmp_path / "corpus.jsonl").write_text(line_of(case) + "\n")
    assert read_corpus(tmp_path / "corpus.jsonl") == [case]
    assert all(case.door in doors() for case in read_corpus())


def test_an_input_is_shortened_while_it_still_fails() -> None:
    files = {"a": b"0123456789" * 50 + b"X" + b"0123456789" * 20, "b": b"other"}
    assert shortened(files, lambda tried: b"X" in tried.get("a", b"")) == {"a": b"X"}


def test_what_inputs_have_in_common_is_the_exception_and_its_place(tmp_path: Path) -> None:
    one = knock(broken(lambda *_: int("x1")), {}, tmp_path / "inside")
    other = knock(broken(lambda *_: int("y2")), {}, tmp_path / "inside")
    assert isinstance(one, Finding) and isinstance(other, Finding) and one.kind == other.kind and one.what != other.what
