"""Metrics: marks add up to the score that is claimed, and the bootstrap says how sure it is."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import InputError, SandboxError
from pilocal.evaluate.scoring.bootstrap import interval
from pilocal.evaluate.scoring.metrics import Metric, make_metric, metric_facts
from pilocal.run_folder.hashes import sha256_file
from pilocal.task import METRICS, Example, Scoring, load_task
from tests.test_flow import make_task


def examples(*answers: str) -> list[Example]:
    return [Example(id=f"test-{i}", query=f"q{i}", answer=answer) for i, answer in enumerate(answers, 1)]


def mean(marks: NDArray[np.float64]) -> float:
    return float(marks.mean())


def test_bleu_is_sacrebleus_divided_by_100() -> None:
    from sacrebleu import corpus_bleu

    metric = make_metric("bleu", Scoring(), Path())
    answers = ["find . -name x -type f", "ls -la", "", "cat a b | sort | uniq -c ", "grep -r 'a, b' /tmp"]
    references = ["find . -name x -type d", "ls -l | wc", "pwd", "cat a b | sort -u | uniq", "grep -R 'a, b' /tmp"]
    marks = metric.marks(answers, examples(*references))
    for some in ([0], [1], [2], [3, 1], [0, 1, 2, 3, 4], [4, 4, 4, 1]):
        wanted = corpus_bleu([answers[i] for i in some], [[references[i] for i in some]]).score / 100
        assert metric.total(marks[some]) == wanted
    perfect = metric.marks(references, examples(*references))
    assert metric.total(perfect) == pytest.approx(1.0)


def test_exact_match_forgives_white_space_at_the_ends_and_nothing_else() -> None:
    metric = make_metric("exact_match", Scoring(), Path())
    marks = metric.marks([" a b\n", "a  b", "A b", ""], examples(*["a b"] * 4))
    assert marks.tolist() == [[1.0], [0.0], [0.0], [0.0]]
    assert metric.total(marks) == 0.25


def test_contains_looks_for_the_words_side_by_side_in_any_accepted_form() -> None:
    metric = make_metric("contains", Scoring(), Path())
    example = Example(id="1", query="", answer="9:30", extra={"accepts": ["half past nine"]})
    answers = ["We open at 9.30!", "at HALF past  nine.", "9 or 30", "19:30", "half past ninety", ""]
    assert metric.marks(answers, [example] * len(answers))[:, 0].tolist() == [1, 1, 0, 0, 0, 0]
    metric.check([example])
    for wrong in ({"accepts": "nine"}, {"accepts": [9]}, {"accepts": ["?!"]}):
        with pytest.raises(InputError, match="test example 1: "):
            metric.check([replace(example, extra=wrong)])


def test_the_interval_of_a_share_is_the_binomials() -> None:
    marks = np.array([[1.0]] * 300 + [[0.0]] * 100)
    low, high = interval(marks[None], mean, samples=4000)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)
    narrow = interval(marks[None], mean, level=0.5)
    assert low < narrow[0] < 0.75 < narrow[1] < high


def test_runs_that_differ_widen_the_interval_and_equal_runs_do_not() -> None:
    draws = np.random.default_rng(1)
    marks = (draws.random((1, 200, 1)) < 0.5).astype(float)
    alone = interval(marks, mean)
    assert interval(np.repeat(marks, 5, axis=0), mean) == pytest.approx(alone, abs=0.015)
    apart = np.concatenate([np.ones((2, 200, 1)), np.zeros((2, 200, 1))])
    low, high = interval(apart, mean)
    assert (low, high) == (0.0, 1.0)


def test_runs_are_resampled_on_the_same_queries() -> None:
    marks = np.zeros((2, 100, 1))
    marks[0, :50], marks[1, 50:] = 1.0, 1.0

    # Where one run fails the other is right: together they score 0.5 on any queries, and half of the draws hold both.
    assert interval(marks, mean, level=0.4) == (0.5, 0.5)
    assert interval(marks, mean) == interval(marks, mean)
    assert interval(marks, mean) != interval(marks, mean, seed=1)


def test_the_interval_of_a_thousand_equal_bleus_is_their_score() -> None:
    metric = make_metric("bleu", Scoring(), Path())
    marks = metric.marks(["find . -name x"] * 1000, examples(*["find . -name y"] * 1000))
    low, high = interval(marks[None], metric.total)
    assert low == high == pytest.approx(metric.total(marks))


@pytest.fixture(scope="module")
def rivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sqlite3

    path = tmp_path_factory.mktemp("rivers") / "rivers.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table river (name text, length real, country text)")
    rows = [("Rhine", 1230.0, "DE"), ("Elbe", 1094.0, "DE"), ("Loire", 1006.0, "FR"), ("Seine", 777.0, "FR")]
    connection.executemany("insert into river values (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def score(path: Path, answer: str, reference: str, **settings: object) -> float:
    metric = make_metric("sqlite", Scoring(database=path.name, **settings), path.parent)  # type: ignore[arg-type]
    return metric.total(metric.marks([answer], examples(reference)))


LONGEST = "select name from river order by length desc"


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("SELECT name FROM river WHERE length > 1000", "select name from river where not length <= 1000", True),
        ("select name from river order by length", "select name from river", True),
        ("select name from river order by length", LONGEST, False),
        ("select r.name from river r order by -r.length", LONGEST, True),
        ("select country from river", "select distinct country from river", False),
        ("select country, name from river", "select name, country from river", False),
        ("select sum(length) / 4 from river", "select avg(length) from river", True),
        ("select count(*) from river", "select 4.0", True),
        ("select '4'", "select 4", False),
        ("select 4.0", "select '4.0'", False),
        ("select 23668041", "select 23668042", False),
        ("select null", "select null", True),
        ("select", "select 1", False),
        ("", "select 1", False),
        ("select 1; select 1", "select 1", False),
    ],
)
def test_a_query_is_right_when_it_brings_the_rows_of_the_reference(
    rivers: Path, answer: str, reference: str, right: bool
) -> None:
    assert score(rivers, answer, reference) == float(right)


@pytest.mark.parametrize(
    "answer",
    [
        "delete from river",
        "drop table river",
        "attach database 'other.sqlite' as other",
        "pragma writable_schema = 1",
        "create temp table a (b)",
        "select load_extension('x')",
        "select length(zeroblob(1000000000))",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n",
        "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n",
    ],
)
def test_an_answer_can_harm_nothing_and_hold_up_nothing(rivers: Path, answer: str) -> None:
    before, began = rivers.read_bytes(), time.monotonic()
    assert score(rivers, answer, "select 4", timeout=0.3) == 0
    assert time.monotonic() - began < 60  # the longest of them would take hours
    assert rivers.read_bytes() == before
    assert [path.name for path in rivers.parent.iterdir()] == ["rivers.sqlite"]
    assert score(rivers, "select count(*) from river", "select 4", timeout=0.3) == 1


def test_faults_of_a_database_and_of_references_are_one_line(rivers: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sqlite needs a database; write database = "):
        make_metric("sqlite", Scoring(), tmp_path)
    with pytest.raises(InputError, match=r"a.sqlite: no such database"):
        make_metric("sqlite", Scoring(database="a.sqlite"), tmp_path)
    (tmp_path / "a.sqlite").write_text("these are no tables, and this text is longer than a header of sqlite is" * 9)
    with pytest.raises(InputError, match=r"a.sqlite: not an SQLite database: file is not a database"):
        make_metric("sqlite", Scoring(database="a.sqlite"), tmp_path)
    metric = make_metric("sqlite", Scoring(database=rivers.name), rivers.parent)
    with pytest.raises(
        InputError, match=r"2 of 3 reference queries do not run; the first, test-2: no such table: lake"
    ):
        metric.check(examples("select 1", "select * from lake", "selec"))
    metric.check(examples("select 1"))


SCORER = """#!/usr/bin/env python3
import json, pathlib, sys, time
for line in sys.stdin:
    record = json.loads(line)
    assert set(record) == {"id", "query", "answer", "prediction"}
    print(0.5 if record["prediction"].lower() == record["answer"] else 0)
"""


def scorer(folder: Path, text: str, **settings: object) -> Metric:
    path = folder / "score.py"
    path.write_text(text)
    path.chmod(0o755)
    return make_metric("command", Scoring(command=("./score.py",), **settings), folder)  # type: ignore[arg-type]


def test_a_program_of_the_users_gives_the_marks(tmp_path: Path) -> None:
    metric = scorer(tmp_path, SCORER)
    marks = metric.marks(["A", "\u00e9\n", "c"], examples("a", "b", "c"))
    assert marks.tolist() == [[0.5], [0.0], [0.5]]
    assert metric.total(marks) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.stdin.read(); sys.exit('no such column')", "ended with status 1; got 'no such column'; fix"),
        (
            "import time; time.sleep(60)",
            "the program took longer than 0.5 s; fix it and run again; the answers are kept",
        ),
        (
            # What it starts outlives it in another session, with its output open.
            "import os, time; os.fork() or (os.setsid(), time.sleep(60)); time.sleep(60)",
            "the program took longer than 0.5 s",
        ),
        ("while True: print('1' * 65536)", "the program printed more than 67,108,864 bytes"),
        ("import sys; sys.stdin.read(); print(1)", "must print 2 lines, one for each answer; got 1"),
        ("import sys; sys.stdin.read(); print('1\\ngood')", "line 2 must be a number from 0 to 1; got 'good'"),
        ("import sys; sys.stdin.read(); print('2\\n0')", "line 1 must be a number from 0 to 1; got '2'"),
        ("import sys; sys.stdin.read(); print('1\\nnan')", "line 2 must be a number from 0 to 1; got 'nan'"),
    ],
)
def test_a_program_that_fails_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    metric = scorer(tmp_path, f"#!/usr/bin/env python3\n{text}\n", timeout=0.5 if "sleep" in text else 30)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        metric.marks(["a", "b"], examples("a", "b"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 50


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="command needs a program"):
        make_metric("command", Scoring(), tmp_path)
    with pytest.raises(InputError, match=r"no such program; got './score\.py'"):
        make_metric("command", Scoring(command=("./score.py",)), tmp_path)


SQUARE = "def square(x):\n    return x * x\n"
ASSERTS = ["assert square(2) == 4", "assert square(-3) == 9"]


@pytest.fixture(scope="module")
def pass_at_1() -> Metric:
    metric = make_metric("python_tests", Scoring(timeout=3.0), Path())
    try:
        metric.check([Example(id="a", query="q", answer="", extra={"tests": ASSERTS})])
    except SandboxError as error:
        pytest.skip(str(error))
    return metric


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (SQUARE, True),
        (f"Sure:\n```python\n{SQUARE}```\nDone.", True),
        (f"print('hello')\n{SQUARE}", True),
        ("def square(x):\n    return 2 * x\n", False),
        ("def square(x) return x * x", False),
        ("", False),
        ("import os; os._exit(0)", False),
        ("raise SystemExit(0)", False),
        ("print('0' * 32); raise SystemExit(0)", False),
        ("while True: pass", False),
        ("import os\nwhile True: os.fork()", False),
        ("x = bytearray(10 << 30)", False),
        ("while True: print('x' * 9999)", False),
        (f"import socket; socket.create_connection(('127.0.0.1', 9), 1)\n{SQUARE}", False),
    ],
)
def test_a_program_is_right_when_its_asserts_hold_and_nothing_else_helps_it(
    answer: str, right: bool, pass_at_1: Metric
) -> None:
    example = Example(id="a", query="q", answer="", extra={"tests": ASSERTS})
    assert pass_at_1.total(pass_at_1.marks([answer], [example])) == float(right)


def test_an_answer_cannot_delete_what_is_at_home(pass_at_1: Metric, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    answer = f"import shutil; shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)\n{SQUARE}"
    example = Example(id="a", query="q", answer="", extra={"tests": "\n".join(ASSERTS), "setup": "import math"})
    pass_at_1.marks([answer] * 3, [example] * 3)
    assert (tmp_path / "kept").read_text() == "kept"


def test_records_without_tests_are_counted() -> None:
    lacking = [Example(id=f"test-{i}", query="q", answer="", extra={"tests": []} if i else {}) for i in range(2)]
    with pytest.raises(InputError, match="2 of 2 records have no tests; the first is test-0"):
        make_metric("python_tests", Scoring(), Path()).check(lacking)


CLOSE = """
from pilocal.evaluate.scoring.metrics import Metric


def make(scoring, folder):
    return Close(scoring.timeout)


class Close(Metric):
    def __init__(self, most):
        self.most = most

    def marks(self, answers, examples, progress=None):
        import numpy as np

        return np.array([[abs(len(a) - len(e.answer)) <= self.most] for a, e in zip(answers, examples)], dtype=float)
"""


def test_a_metric_is_a_file_and_a_line(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilocal.evaluate import scoring

    folder = make_task(tmp_path / "task", tiny_base.folder)
    toml = folder / "task.toml"
    text = toml.read_text().replace('name = "tiny"', 'name = "tiny"\nmetric = "close"')
    toml.write_text(text.replace("[lora]", "[scoring]\ntimeout = 1.0\n[lora]"))
    with pytest.raises(InputError, match="metric must be one of exact_match, "):
        load_task(folder)
    (tmp_path / "close.py").write_text(CLOSE)
    monkeypatch.setattr(scoring, "__path__", [*scoring.__path__, str(tmp_path)])
    monkeypatch.setitem(METRICS, "close", ("timeout",))
    task = load_task(folder)
    metric = make_metric(task.metric, task.scoring, task.folder)
    metric.check(task.test)
    assert metric.total(metric.marks(["abcd", "abcde", ""], task.test)) == pytest.approx(1 / 3)
    assert metric_facts(task, metric)["metric"] == "close"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_table_has_its_file(name: str) -> None:
    module = import_module(f"pilocal.evaluate.scoring.{name}")
    assert get_type_hints(module.make)["return"] is Metric


def test_without_strip_an_answer_is_compared_byte_for_byte(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    toml = folder / "task.toml"
    toml.write_text(toml.read_text() + "[scoring]\nstrip = false\n")
    task = load_task(folder)
    metric = make_metric(task.metric, task.scoring, task.folder)
    example = Example(id="1", query="q", answer="    return x\n")
    answers = ["    return x\n", "return x", "    return x", "    return x\r\n", " \n    return x\n"]
    assert metric.marks(answers, [example] * 5)[:, 0].tolist() == [1, 0, 0, 0, 0]
    assert make_metric("exact_match", Scoring(), folder).marks(answers, [example] * 5)[:, 0].tolist() == [1, 1, 1, 1, 1]
    assert metric_facts(task, metric)["scoring"]["strip"] is False
    toml.write_text(toml.read_text().replace('name = "tiny"', 'name = "tiny"\nmetric = "bleu"'))
    with pytest.raises(InputError, match=r"the metric bleu does not read \[scoring\] strip; it reads none"):
        load_task(folder)


def test_what_decides_the_marks_is_hashed_whatever_the_metric(rivers: Path, tmp_path: Path, tiny_base: Base) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    shutil.copy(rivers, folder / "rivers.sqlite")
    toml = folder / "task.toml"
    plain = toml.read_text()

    def facts(metric: str, scoring: str) -> dict[str, Any]:
        toml.write_text(plain.replace('name = "tiny"', f'name = "tiny"\nmetric = "{metric}"') + scoring)
        task = load_task(folder)
        return metric_facts(task, make_metric(task.metric, task.scoring, task.folder))

    settings = {"database": None, "command": (), "timeout": None, "memory_mb": 512, "max_rows": 10_000}
    assert facts("bleu", "") == {"metric": "bleu", "scoring": settings, "sha256": []}
    database = sha256_file(folder / "rivers.sqlite")
    assert facts("sqlite", '[scoring]\ndatabase = "rivers.sqlite"\n') == {
        "metric": "sqlite",
        "scoring": settings | {"database": "rivers.sqlite"},
        "sha256": [database],
    }
    (folder / "score.py").write_text(SCORER)
    (folder / "words.txt").write_text("a b")
    command = ("python3", "score.py", "words.txt", "--strict")
    assert facts("command", f"[scoring]\ncommand = {list(command)}\n") == {
        "metric": "command",
        "scoring": settings | {"command": command},
        "sha256": [sha256_file(folder / "score.py"), sha256_file(folder / "words.txt")],
    }
