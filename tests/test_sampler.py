"""How a token is chosen, and where an answer's text ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilocal.llamacpp.sampler import Choice, Sampler
from pilocal.server.answer import StopFinder

OPEN: Any = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits(size: int = 50, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32) * 3


def with_penalty(name: str, value: float, **more: Any) -> Choice:
    given: Any = {name: value, **more}
    return Choice(**given)


def draws(choice: Choice, count: int, logits_V: NDArray[np.float32]) -> list[int]:
    sampler = Sampler(choice)
    return [token for _ in range(count) if (token := sampler.choose(logits_V)) is not None]


def test_at_temperature_0_the_likeliest_is_taken() -> None:
    assert set(draws(Choice(temperature=0), 5, logits())) == {int(logits().argmax())}


def test_a_seed_draws_the_same_again_and_another_number_something_else() -> None:
    choice = Choice(temperature=2, seed=7, **OPEN)
    assert draws(choice, 30, logits()) == draws(choice, 30, logits())
    other = Sampler(choice, 1)
    assert [other.choose(logits()) for _ in range(30)] != draws(choice, 30, logits())
    assert draws(Choice(temperature=2, **OPEN), 30, logits()) != draws(Choice(temperature=2, **OPEN), 30, logits())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    few = logits(6)
    wide = np.exp(few / 1.5)
    drawn = draws(Choice(temperature=1.5, seed=1, **OPEN), 20_000, few)
    assert np.abs(np.bincount(drawn, minlength=6) / 20_000 - wide / wide.sum()).max() < 0.02


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 2), st.integers(0, 1000))
def test_only_what_every_limit_lets_through_is_drawn(k: int, p: float, share: float, heat: float, seed: int) -> None:
    logits_V = logits(50, seed)
    token = Sampler(Choice(temperature=heat, top_k=k, top_p=p, min_p=share, seed=seed)).choose(logits_V)
    shares = np.exp(logits_V.astype(np.float64) - logits_V.max())
    rank = int((logits_V > logits_V[token]).sum())
    best = token == int(logits_V.argmax())
    kept = np.sort(shares)[::-1][:k]
    assert best or (rank < k and shares[token] >= share)
    assert best or kept[:rank].sum() <= p * kept.sum() + 1e-9


def test_bias_and_penalties_move_what_is_chosen() -> None:
    best, second = np.argsort(-logits())[:2]
    assert draws(Choice(temperature=0, bias={int(best): -100.0}), 1, logits()) == [second]
    assert draws(Choice(temperature=0, bias={3: 100.0}), 2, logits()) == [3, 3]
    for name in ("presence_penalty", "frequency_penalty", "repeat_penalty"):
        first, *rest = draws(with_penalty(name, 100.0, temperature=0), 3, logits())
        assert first == best
        assert best not in rest


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
def test_a_negative_penalty_repeats(name: str) -> None:
    said = draws(with_penalty(name, -100.0, temperature=2, seed=3, **OPEN), 9, logits())
    assert len(set(said)) == 1


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.data())
def test_a_text_ends_at_the_same_place_however_it_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    wanted = text[: min(ends)[1]] if ends else text
    find, said, left = StopFinder(stops), "", text
    while left and not find.found:
        size = data.draw(st.integers(1, len(left)))
        said += find.add(left[:size])
        left = left[size:]
    assert said + ("" if find.found else find.rest()) == wanted
    assert find.found == bool(ends)
