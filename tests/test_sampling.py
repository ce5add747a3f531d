"""A check of many examples looks at a sample, says so, and finds what it would find among all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilocal.errors import InputError
from pilocal.flow import sampling
from pilocal.flow.listeners import QUIET
from pilocal.flow.opening import open_task
from pilocal.flow.plan import Plan, plan_run
from pilocal.flow.sampling import sample, sampled
from pilocal.task import Example
from tests.bench.made_data import write_task

ROWS = 60


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("sampled") / "task", ROWS, 6, words=20)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few examples for many."""
    for name, value in (("MANY", 30), ("SAMPLE", 12), ("LONGEST", 2)):
        monkeypatch.setattr(sampling, name, value)


def planned(task: Path, run: Path | None = None, gap: bool = False) -> Plan:
    with open_task(task, None, run) as context:
        return plan_run(context, probe=False, gap=gap)


@pytest.mark.usefixtures("many")
def test_a_plan_from_a_sample_says_so_and_is_near_that_of_all(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = planned(task)
    monkeypatch.setattr(sampling, "MANY", ROWS)
    whole = planned(task)
    assert whole.sample == {} and not [hint for hint in whole.hints if "sample" in hint]
    (count,) = part.sample.values()
    assert list(part.sample) == ["train"] and 12 <= count <= 14
    said = f"planned from a sample, {count} of 60 train examples, the longest among them; `pilocal stages` looks"
    assert part.hints[0].startswith(said)
    assert part.hints[1:] == whole.hints
    for ours, all_of_it in zip(part.stages, whole.stages, strict=True):
        assert ours.prompt_tokens == pytest.approx(all_of_it.prompt_tokens, rel=0.2)
        assert (ours.template_tokens, ours.steps) == (all_of_it.template_tokens, all_of_it.steps)


@pytest.mark.usefixtures("many")
def test_a_row_that_is_too_long_is_in_the_sample(task: Path, tmp_path: Path) -> None:
    copy = write_task(tmp_path / "task", ROWS, 6, words=20)
    lines = (copy / "train.jsonl").read_text().splitlines()
    lines[32] = json.dumps({"query": "word " * 20_000, "answer": "ls"})
    (copy / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="tokens over the model's context"):
        planned(copy)


@pytest.mark.usefixtures("many")
def test_the_shots_of_a_sample_are_not_kept_and_the_template_is(task: Path, tmp_path: Path) -> None:
    planned(task, tmp_path / "run")
    assert not (tmp_path / "run" / "index").exists()
    assert list((tmp_path / "run" / "templates").iterdir())


@pytest.mark.usefixtures("many")
def test_what_no_query_names_is_looked_for_in_all(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {True: list[list[int | None]](), False: list[list[int | None]]()}
    for part in (True, False):
        monkeypatch.setattr(sampling, "MANY", 30 if part else ROWS)
        found = planned(task, gap=True)
        assert found.gap is not None
        queries[part].append([entry.queries for entry in found.gap.entries])
    assert queries[True] == queries[False]


@pytest.mark.usefixtures("many")
def test_a_small_pool_of_many_does_not_become_too_small(task: Path, tmp_path: Path) -> None:
    copy = write_task(tmp_path / "task", ROWS, 6, words=20)
    with (copy / "task.toml").open("a") as file:
        file.write("[retrieval]\npool = 0.15\n")
    assert planned(copy).sample


@pytest.mark.usefixtures("many")
def test_a_sample_asks_as_many_questions_as_shots_need() -> None:
    same = [Example(id=str(n), query="again", answer="a") for n in range(100)]
    others = [Example(id=f"o{n}", query=f"other {n}", answer="a") for n in range(9)]
    found = sample([*same, *others], shots=5)
    assert len({example.query for example in found}) >= 6
    assert found == tuple(example for example in (*same, *others) if example in found)


def test_few_examples_are_all_looked_at(task: Path) -> None:
    with open_task(task, None, None, QUIET) as context, sampled(context) as part:
        assert part is context
