"""Scores by entry of the template: which requests need an entry, what is scored for it, and the picture."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.cli.tables import proof_lines
from pilocal.evaluate.arms import BASE_FULL_PROMPT, INTERNALIZED
from pilocal.evaluate.scoring.metrics import make_metric
from pilocal.flow.by_entry import DRAWN, draw_entries, needed_entries, score_entries
from pilocal.task import Example, Scoring, Task, load_task
from tests.documents import ROOT
from tests.test_flow import flow, make_task
from tests.test_tables import whole

FULL, LEARNED = BASE_FULL_PROMPT.name, INTERNALIZED.name


def examples(*pairs: tuple[str, str]) -> tuple[Example, ...]:
    return tuple(Example(id=str(i), query=query, answer=answer) for i, (query, answer) in enumerate(pairs))


@pytest.fixture
def colours(tiny_base: Base, tmp_path: Path) -> Task:
    return load_task(make_task(tmp_path / "task", tiny_base.folder))


def needed(task: Task) -> dict[str, list[int]]:
    return {entry.text: numbers for entry, numbers in needed_entries(task) if numbers}


def test_a_request_needs_the_entries_of_the_words_in_it() -> None:
    folder = ROOT / "examples" / "smart-home-gap"
    task = load_task(folder)
    lines = [line for line in task.template.splitlines() if re.fullmatch(r"- \w+ [A-Z]{3}", line)]
    assert len(lines) == 48
    words = {line.split()[1]: line.removeprefix("- ") for line in lines}
    expected: dict[str, list[int]] = {}
    for number, example in enumerate(task.test):
        for word in re.findall(r"\w+", example.query):
            if word in words:
                expected.setdefault(words[word], []).append(number)
    assert needed(task) == {text: expected[text] for text in needed(task)}
    assert needed(task).keys() == expected.keys()


def test_a_request_whose_answer_alone_names_an_entry_needs_it(colours: Task) -> None:
    task = replace(colours, test=examples(("and which is the colour of the sky?", "MIP"), ("hello", "good day")))
    assert needed(task) == {"blue MIP": [0]}


def test_a_fact_is_needed_where_the_answer_stands_in_it() -> None:
    template = "Answer from these.\n- The shop opens at 10.\n- The cat is 10 years old.\n- The owner is Ann Lee.\n"
    accepted = Example(id="a", query="Who owns it?", answer="Lee, Ann", extra={"accepts": ["ann lee"]})
    asked = examples(("When does the shop open?", "10"), ("How old is the cat?", "10"), ("How many?", "10"))
    task = replace(load_task(ROOT / "examples" / "smart-home"), template=template, train=(), valid=())
    found = needed(replace(task, test=(*asked, accepted)))
    assert found == {"The shop opens at 10.": [0], "The cat is 10 years old.": [1], "The owner is Ann Lee.": [3]}


def test_a_common_word_in_queries_is_no_name_of_an_entry() -> None:
    template = "Be kind.\n- Coffee is free today.\n- Helmets cost nothing now.\n- Tours begin at noon.\n"
    asked = examples(
        ("is coffee free?", "yes"), ("is a tour free?", "no"), ("free or not", "no"), ("is it free?", "no")
    )
    task = replace(load_task(ROOT / "examples" / "smart-home"), template=template, train=(), valid=(), test=asked)
    assert needed(task) == {}
    metric = make_metric("exact_match", Scoring(), Path())
    assert score_entries(task, metric, {}) == []


@pytest.mark.parametrize("name", ["A-12", "it's", "v1.5", "night light", "B-7 x"])
def test_names_with_signs_are_found(name: str, colours: Task) -> None:
    template = f"Codes.\n- {name}: ZOR\n- blue: MIP\n- green: KEL\n"
    asked = examples((f"tell {name.upper()}", "ZOR"), ("tell blue", "MIP"), ("tell green, please", "it is KEL"))
    task = replace(colours, template=template, train=(), valid=(), test=asked)
    assert needed(task) == {f"{name}: ZOR": [0], "blue: MIP": [1], "green: KEL": [2]}


def test_each_entry_has_the_score_of_its_own_requests(colours: Task) -> None:
    asked = examples(("tell red", "ZOR"), ("tell red!", "ZOR"), ("tell blue", "MIP"), ("hello there", "good day"))
    task = replace(colours, test=asked)
    metric = make_metric("exact_match", Scoring(), Path())
    marks = {FULL: np.array([[1.0], [1.0], [1.0], [0.0]]), LEARNED: np.array([[1.0], [0.0], [0.0], [1.0]])}
    found = {line["entry"]: line for line in score_entries(task, metric, marks)}
    assert found["red ZOR"] == {"entry": "red ZOR", "requests": 2, FULL: 1.0, LEARNED: 0.5}
    assert found["blue MIP"] == {"entry": "blue MIP", "requests": 1, FULL: 1.0, LEARNED: 0.0}
    assert found["green KEL"] == {"entry": "green KEL", "requests": 0, FULL: None, LEARNED: None}
    assert found[None] == {"entry": None, "requests": 1, FULL: 0.0, LEARNED: 1.0}
    assert list(found)[-1] is None
    every = replace(task, test=asked[:3])
    assert None not in [line["entry"] for line in score_entries(every, metric, marks)]


def scored(count: int) -> list[dict[str, Any]]:
    return [{"entry": f"entry {i} $1$", "requests": 2, FULL: 1.0, LEARNED: i / count} for i in range(count)]


def texts(svg: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_names_every_entry_that_has_requests(tmp_path: Path) -> None:
    lines = [*scored(2), {"entry": "\u706f \u5f00 " * 30, "requests": 1, FULL: 1.0, LEARNED: 1.0}]
    lines += [{"entry": "no request", "requests": 0, FULL: None, LEARNED: None}]
    lines += [{"entry": None, "requests": 3, FULL: 0.5, LEARNED: 0.5}]
    for name in ("a.svg", "b.svg"):
        draw_entries(lines, "exact_match", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    found = texts(tmp_path / "a.svg")
    assert {"entry 0 $1$ (2)", "entry 1 $1$ (2)", "no entry (3)", "exact_match", INTERNALIZED.title} <= set(found)
    assert not [text for text in found if "no request" in text]


def test_of_many_entries_the_picture_has_those_that_were_learned_least(tmp_path: Path) -> None:
    draw_entries(scored(DRAWN + 20), "exact_match", tmp_path / "a.svg")
    shown = [int(text.split()[1]) for text in texts(tmp_path / "a.svg") if text.startswith("entry ")]
    assert sorted(shown) == list(range(DRAWN))


@pytest.mark.parametrize("drawn", [True, False])
def test_a_run_keeps_the_scores_and_draws_them_where_it_can(
    drawn: bool, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilocal.flow.steps.evaluate.is_installed", lambda name: drawn)
    folder = make_task(tmp_path / "task", tiny_base.folder, steps=3)
    flow(folder)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    asked = {line["entry"]: line for line in metrics["entries"] if line["requests"]}
    assert {entry: line["requests"] for entry, line in asked.items()} == {"red ZOR": 1, "blue MIP": 1, "green KEL": 1}
    assert sum(line[LEARNED] for line in asked.values()) == pytest.approx(3 * metrics["arms"][LEARNED]["score"])
    assert (folder / "run" / "entries.svg").is_file() is drawn
    assert not any(flow(folder).values())


def test_the_report_names_the_entries_that_were_not_learned_and_is_silent_without_entries() -> None:
    lost = [{"entry": f"word{i} " * 20, "requests": 123, FULL: 1.0, LEARNED: i / 100} for i in range(9)]
    kept = [{"entry": "kept", "requests": 1, FULL: 0.5, LEARNED: 0.5}]
    rest = [{"entry": None, "requests": 3, FULL: 0.0, LEARNED: 0.0}]
    (part,) = proof_lines({"entries": [*kept, *lost[::-1], *rest]})
    lines = whole(part, "1 of 10 entries that requests need: as good as with the prompt", "and 4 more")
    assert next(line for line in lines if line.startswith("worse: ")).startswith("worse: 'word0 word0")
    assert proof_lines({"arms": {}}) == []
