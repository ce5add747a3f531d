"""Claims about shots of many examples: found in a shortlist, nearly as good as the best of all, the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pilocal.retrieve import ShotPicker, similarity
from pilocal.retrieve.bleu import BleuBank
from pilocal.retrieve.similarity import ByBleu
from pilocal.task import Example, Retrieval
from tests.bench.made_data import Maker


def made(count: int, seed: int = 0) -> list[Example]:
    """Return examples of the made data set, all queries different."""
    maker, found = Maker(seed), dict[str, str]()
    while len(found) < count:
        query, answer = maker.example()
        found.setdefault(query, answer)
    return [Example(id=str(n), query=query, answer=answer) for n, (query, answer) in enumerate(found.items())]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return made(800)


def chosen(examples: list[Example], folder: Path, k: int = 3, pool: float = 1.0) -> list[tuple[int, ...]]:
    picker = ShotPicker(examples, Retrieval(pool=pool), folder, k=k)
    return [picker.for_training(i, k) for i in range(len(examples))]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take few examples for many, and small shortlists."""
    for name, value in (("EXACT_PAIRS", 0), ("SHORTLIST", 24), ("NEAR_EACH", 1)):
        monkeypatch.setattr(similarity, name, value)


def test_a_shortlists_scores_are_those_of_the_whole_bank(examples: list[Example]) -> None:
    answers = list(dict.fromkeys(example.answer for example in examples))
    bank = BleuBank(answers)
    for reference in (*answers[:20], "no word of this", "", 'set --date "2026-01-01" --date "2026-01-01"'):
        scores = bank.scores(reference)
        near = bank.shortlist(reference, 40, 2_000)
        assert near.numbers.tolist() == sorted(set(near.numbers.tolist()))
        assert near.scores.tolist() == scores[near.numbers].tolist()
        everything = bank.shortlist(reference, len(answers), 10**9)
        assert everything.whole
        assert everything.numbers.tolist() == np.flatnonzero(scores).tolist()


def test_a_search_leaves_nothing_behind_for_the_next(examples: list[Example]) -> None:
    answers = [example.answer for example in examples[:200]]
    bank = BleuBank(answers)
    first = [bank.shortlist(answer, 10, 300).numbers.tolist() for answer in answers[:30]]
    assert [BleuBank(answers).shortlist(answer, 10, 300).numbers.tolist() for answer in answers[:30]] == first


@pytest.mark.usefixtures("many")
def test_shots_from_shortlists_are_nearly_as_good_as_the_best_and_that_is_kept(
    examples: list[Example], tmp_path: Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    picker = ShotPicker(examples, Retrieval(), tmp_path, k=3, progress=lambda *call: calls.append(call))
    known = json.loads((tmp_path / "shots.json").read_text())["shortlist"]
    assert known == picker.shortlist
    assert (known["texts"], known["sample"]) == (24, 100)
    assert 0.99 * known["mean_bleu_exact"] <= known["mean_bleu"] <= known["mean_bleu_exact"]
    assert 0.8 < known["recall"] <= 1
    again = ShotPicker(examples, Retrieval(), tmp_path, k=3, progress=lambda *call: calls.append(call))
    assert again.shortlist == known
    assert calls[-1] == ("shots", 800, 800) and len(calls) == len({call[1] for call in calls})


def test_with_shortlists_of_everything_the_choice_is_the_exact_one(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*examples[:150], *(Example(id=f"x{n}", query=f"again {n % 3}", answer="pwd") for n in range(20))]
    exact = [chosen(few, tmp_path / f"exact-{pool}", pool=pool) for pool in (1.0, 0.5)]
    assert "shortlist" not in json.loads((tmp_path / "exact-1.0" / "shots.json").read_text())
    monkeypatch.setattr(similarity, "EXACT_PAIRS", 0)
    monkeypatch.setattr(similarity, "SHORTLIST", 1_000)
    assert [chosen(few, tmp_path / f"near-{pool}", pool=pool) for pool in (1.0, 0.5)] == exact


@pytest.mark.usefixtures("many")
def test_an_example_like_no_other_still_has_shots(tmp_path: Path) -> None:
    alone = [Example(id=str(n), query=f"query {n}", answer=f"word{n}") for n in range(60)]
    shots = chosen(alone, tmp_path)
    assert (shots[0], shots[1], shots[59]) == ((3, 2, 1), (3, 2, 0), (2, 1, 0))


@pytest.mark.usefixtures("many")
def test_where_a_shortlist_asks_one_question_the_others_are_found(tmp_path: Path) -> None:
    words = [f"a b c d e{n}" for n in range(100)]
    same = [Example(id=str(n), query="again", answer=answer) for n, answer in enumerate(words)]
    others = [Example(id=f"o{n}", query=f"other {n}", answer=f"a f{n} g h i j") for n in range(3)]
    assert set(chosen([*same, *others], tmp_path)[0]) == {100, 101, 102}


def test_an_order_is_read_once_and_as_far_as_it_is_wanted(examples: list[Example]) -> None:
    answers = [example.answer for example in examples[:50]]
    (ranking,) = ByBleu(answers, list(range(50)), 50, 3).rankings([answers[7]])
    read = [number for number, _ in zip(ranking, range(5), strict=False)]
    assert read[0] == 7
    assert [number for number, _ in zip(ranking, range(5), strict=False)] == read
    assert set(ranking) == set(range(50))


def test_the_made_data_set_is_its_seeds() -> None:
    assert made(20) == made(20) != made(20, seed=1)
    lengths = [len(example.query.split()) for example in made(300)]
    assert 8 <= min(lengths) < 15 and 30 < max(lengths) <= 60
