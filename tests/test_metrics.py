"""Metrics: marks add up to the score that is claimed, and the bootstrap says how sure it is."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from pilocal.evaluate.bootstrap import interval
from pilocal.evaluate.metrics import make_metric
from pilocal.task import Example, Scoring


def examples(*answers: str) -> list[Example]:
    return [Example(id=f"test-{i}", query=f"q{i}", answer=answer) for i, answer in enumerate(answers, 1)]


def mean(marks):
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


def test_the_interval_of_a_thousand_bleus_takes_less_than_a_second() -> None:
    metric = make_metric("bleu", Scoring(), Path())
    marks = metric.marks(["find . -name x"] * 1000, examples(*["find . -name y"] * 1000))
    began = time.perf_counter()
    low, high = interval(marks[None], metric.total)
    assert time.perf_counter() - began < 1.0
    assert low == high == pytest.approx(metric.total(marks))
