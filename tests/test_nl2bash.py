"""Claims about the script that makes a task of NL2Bash."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.task import Task, load_task

SCRIPT = Path(__file__).parent.parent / "examples" / "nl2bash" / "prepare.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Task:
    if "PILOCAL_DATA" not in os.environ:
        pytest.skip("PILOCAL_DATA names no folder with nl2bash/all.nl and nl2bash/all.cm")
    out = tmp_path_factory.mktemp("nl2bash") / "task"
    done = run(Path(os.environ["PILOCAL_DATA"]) / "nl2bash", out)
    assert done.returncode == 0, done.stderr
    return load_task(out)


def test_the_real_files_make_a_valid_task(whole: Task) -> None:
    sizes = [len(split) for split in (whole.train, whole.valid, whole.test)]
    assert sum(sizes) > 12_000
    assert [round(size / sum(sizes), 2) for size in sizes] == [
        pytest.approx(0.85, abs=0.02),
        pytest.approx(0.05, abs=0.01),
        pytest.approx(0.10, abs=0.02),
    ]
    assert whole.metric == "bleu" and 400 < len(whole.template.split()) < 800


def test_no_question_and_no_command_of_the_real_files_is_in_two_splits(whole: Task) -> None:
    splits = (whole.train, whole.valid, whole.test)
    questions = [{" ".join(example.query.split()).casefold() for example in split} for split in splits]
    commands = [{" ".join(example.answer.split()) for example in split} for split in splits]
    for kind in (questions, commands):
        assert all(kind)
        assert not kind[0] & kind[1] and not kind[0] & kind[2] and not kind[1] & kind[2]


PAIRS = st.lists(st.tuples(st.sampled_from(["a", "A ", "b", "c", "d"]), st.sampled_from(["ls", "pwd", "wc", "x  y"])))


@given(pairs=PAIRS)
def test_groups_share_nothing_and_lose_nothing(script: ModuleType, pairs: list[tuple[str, str]]) -> None:
    groups = script.groups(pairs)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    for same in (script.same_question, script.same_command):
        seen = [{same(pair) for pair in group} for group in groups]
        assert sum(map(len, seen)) == len(set().union(*seen))


def many(script: ModuleType) -> list[tuple[str, str]]:
    return [(f"question {n // 2}", f"command {n}") for n in range(600)]


def test_the_split_does_not_depend_on_the_order_of_the_lines(script: ModuleType) -> None:
    pairs = many(script)
    forwards, backwards = script.split(pairs, 0), script.split(pairs[::-1], 0)
    assert {name: set(split) for name, split in forwards.items()} == {
        name: set(split) for name, split in backwards.items()
    }


def test_another_seed_deals_the_groups_anew(script: ModuleType) -> None:
    assert set(script.split(many(script), 0)["test"]) != set(script.split(many(script), 1)["test"])


def test_equal_pairs_are_written_once(script: ModuleType, tmp_path: Path) -> None:
    nl, cm = tmp_path / "all.nl", tmp_path / "all.cm"
    nl.write_text("List files\nlist  files\nlist files\n")
    cm.write_text("ls\nls \nls -l\n")
    assert script.read_pairs(nl, cm) == (3, [("List files", "ls"), ("list files", "ls -l")])


@pytest.mark.parametrize(
    ("nl", "cm", "line"),
    [
        ("a\nb\n", "ls\n", "all.cm: 2 lines needed, as in {folder}/all.nl; got 1; give the two files of one"),
        ("a\nb\n", "ls\n \n", "all.cm:2: an empty line; fill it in"),
        (None, "ls\n", "all.nl: no such file"),
        ("a\n", "ls\n", "all.nl: too few pairs: nothing is left for "),
    ],
)
def test_bad_input_is_one_line_and_exit_1(tmp_path: Path, nl: str | None, cm: str, line: str) -> None:
    if nl is not None:
        (tmp_path / "all.nl").write_text(nl)
    (tmp_path / "all.cm").write_text(cm)
    done = run(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{tmp_path}/{line.format(folder=tmp_path)}")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path.parent)
    assert done.returncode == 1
    assert "already exists and is not empty" in done.stderr
