"""Many clients that hang up amid their answers: the short form of `just soak`, and that it would notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pilocal.base.base import Base
from pilocal.prompt.tokens import end_tokens
from pilocal.run_folder.shipped import read_shipped
from tests.bench.two_servers import our_server
from tests.soak.questions import Asker, Choice, Question, is_tie
from tests.soak.soak import Result, Soak, answers_alone

CLIENTS, EACH = 8, 4


@pytest.fixture(scope="module")
def served(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    with our_server(runs, tmp_path_factory.mktemp("soak"), "--threads", 1, "--context", 512) as found:
        yield found


@pytest.fixture(scope="module")
def questions(runs: list[Path], served: tuple[int, int], starter: Base) -> list[Question]:
    rng = Random(0)
    asker = Asker([read_shipped(run) for run in runs], end_tokens(starter.tokenizer), rng)
    asked = [each for owner in range(CLIENTS) for each in rng.sample(list(asker.questions(owner)), EACH)]
    return answers_alone(served[0], asked)


def test_every_answer_is_its_client_s_own_among_many_that_hang_up(
    served: tuple[int, int], questions: list[Question]
) -> None:
    assert len({question.kind for question in questions}) >= 8
    result = Soak(*served, questions, Random(1)).run(2, least=150)
    assert not result.wrong
    assert result.left.total() > 10
    assert result.memory


def test_an_answer_of_another_is_noticed(served: tuple[int, int], questions: list[Question]) -> None:
    one, two = [each for each in questions if each.kind == "embedding"][:2]
    mixed = [replace(one, answer=two.answer), two]
    wrong = Soak(*served, mixed, Random(2)).run(0.1, least=10).wrong
    assert len(wrong) == 1
    assert wrong[0].startswith(f"client {one.owner}, embedding: ")


def test_an_answer_may_part_from_another_only_between_tokens_as_likely() -> None:
    tokens = [Choice(b"a", b"b", 3.0), Choice(b"c", b"d", 0.01)]
    assert [is_tie(said, tokens, 0.1) for said in ("ac", "ad", "b", "ae", "a")] == [True, True, False, False, False]


def test_memory_that_grows_is_noticed() -> None:
    assert Result(memory=[100.0] * 100).is_flat
    assert Result(memory=[50.0] * 10 + [100.0] * 90).is_flat  # what comes before the warm-up is no growth
    assert Result(memory=[100.0, 120.0, 120.0] * 60 + [120.0, 120.0, 100.0] * 60).is_flat  # nor what is given back
    assert not Result(memory=[100.0 + sample / 5 for sample in range(100)]).is_flat
