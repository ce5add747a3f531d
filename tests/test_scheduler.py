"""The engine: answers as if each request were alone, whatever else is asked, and room that is given out fairly."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import RunError
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.llamacpp.engine import Engine
from pilocal.llamacpp.model import Model, load_adapter
from pilocal.llamacpp.scheduler import BASE, FULL, SLICE, TURN, Pace, Scheduler
from pilocal.llamacpp.sequences import Weights, common_length
from pilocal.prompt.sampling import likeliest
from tests.tiny import make_adapter, make_base

DRAW = np.random.default_rng(5)
PROMPTS = [[int(token) for token in DRAW.integers(5, 900, length)] for length in (1, 2, 7, 30, 31, 64, 90, 150)]
TASK: Weights = ("task", 1.0)


class Request:
    """A greedy answer of so many tokens; `at` notes the number of the batch that each came with."""

    def __init__(self, prompt: Sequence[int], weights: Weights = BASE, tokens: int = 12) -> None:
        self.prompt, self.weights, self.wanted = list(prompt), weights, tokens
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.tokens: list[int] = []
        self.reused = 0
        self.at: list[int] = []
        self.error: Exception | None = None
        self.engine: Scheduler

    def take(self, logits_V: NDArray[np.float32]) -> int | None:
        self.at.append(self.engine.counts.batches)
        self.tokens.append(likeliest(logits_V))
        return self.tokens[-1] if len(self.tokens) < self.wanted else None

    def end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()


def submit(engine: Scheduler, *requests: Request) -> None:
    """Have requests answered that arrive together."""
    for request in requests:
        request.engine = engine
    engine.submit(*requests)


def wait(*requests: Request) -> list[list[int]]:
    for request in requests:
        assert request.ended.wait(120)
        assert request.error is None
    return [request.tokens for request in requests]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("engine")
    base = make_base(folder / "base", starter.folder, hidden_size=128, intermediate_size=192)
    adapter = make_adapter(folder / "adapter", base, scale=5.0)
    gguf = export_fused(base, None, folder / "base.gguf", "f16")
    return gguf, export_adapter(base, adapter, folder / "adapter.gguf", name="task")


@pytest.fixture(scope="module")
def model(files: tuple[Path, Path]) -> Iterator[Model]:
    with Model(files[0]) as model:
        yield model


def opened(model: Model, files: tuple[Path, Path], *, tokens: int = 2048, clients: int = 8, kept: int = 8) -> Scheduler:
    adapters = {"task": load_adapter(model.handle, files[1])}
    return Scheduler(model, adapters, tokens=tokens, clients=clients, kept=kept, threads=1)


@pytest.fixture(scope="module")
def alone(files: tuple[Path, Path]) -> dict[Weights, list[list[int]]]:
    found = {}
    for weights, adapter in ((BASE, None), (TASK, files[1])):
        with Engine(files[0], 256, adapter) as engine:
            timed = engine.answer(
                PROMPTS, ends=frozenset(), max_tokens=12, warm=False, progress=lambda *_: None, name=""
            )
        found[weights] = timed.answers
    assert all(one != other for one, other in zip(found[BASE], found[TASK], strict=True))
    return found


def test_alone_every_request_is_computed_as_in_a_process_of_its_own(model: Model, files: tuple[Path, Path]) -> None:
    rows: list[NDArray[np.float32]] = []

    class Watched(Request):
        def take(self, logits_V: NDArray[np.float32]) -> int | None:
            rows.append(logits_V.copy())
            return super().take(logits_V)

    found = []
    for order in ([5, 3], [3, 5, 7, 5]):
        rows.clear()
        with opened(model, files, clients=1, kept=0) as engine:
            asked = [Watched(PROMPTS[number], TASK) for number in order]
            submit(engine, *asked)
            wait(*asked)
            assert engine.counts.reused == 0
        found.append([np.stack(rows[12 * at : 12 * at + 12]) for at, number in enumerate(order) if number == 5])
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][0], found[1][1])


@pytest.mark.parametrize(("clients", "tokens"), [(1, 2048), (3, 2048), (16, 2048), (16, 256)])
def test_each_request_is_answered_as_if_it_were_alone(
    model: Model, files: tuple[Path, Path], alone: dict[Weights, list[list[int]]], clients: int, tokens: int
) -> None:
    with opened(model, files, clients=clients, tokens=tokens) as engine:
        asked = [Request(prompt, weights) for _ in range(3) for weights in (BASE, TASK) for prompt in PROMPTS]
        submit(engine, *asked)
        assert wait(*asked) == 3 * [*alone[BASE], *alone[TASK]]
        assert engine.sequences.used <= tokens


def test_requests_that_outgrow_the_room_start_again_and_say_the_same(model: Model, files: tuple[Path, Path]) -> None:
    with opened(model, files, tokens=1024) as engine:
        (said,) = wait(*asked_at_once(engine, 1))
    with opened(model, files, tokens=256) as engine:
        assert wait(*asked_at_once(engine, 6)) == [said] * 6
        assert engine.counts.preempted > 0


def asked_at_once(engine: Scheduler, count: int) -> list[Request]:
    asked = [Request([7, 8, 9], tokens=100) for _ in range(count)]
    submit(engine, *asked)
    return asked


def test_what_can_never_fit_fails_alone(model: Model, files: tuple[Path, Path]) -> None:
    with opened(model, files, tokens=256) as engine:
        endless, other = Request([5], tokens=1000), Request([6])
        submit(engine, endless)
        assert endless.ended.wait(120)
        assert isinstance(endless.error, RunError)
        submit(engine, other)
        wait(other)


def test_a_beginning_is_read_once_for_the_same_weights_and_for_no_others(
    model: Model, files: tuple[Path, Path]
) -> None:
    long = PROMPTS[-1]
    with opened(model, files) as engine:
        for weights, reused in ((BASE, 0), (BASE, 150), (TASK, 0), (("task", 0.5), 0), (TASK, 150), (BASE, 150)):
            before = engine.counts.reused
            request = Request([*long, 5 + reused], weights)
            submit(engine, request)
            wait(request)
            assert engine.counts.reused - before == reused


def test_requests_that_share_a_beginning_at_the_same_time_have_it_read_once(
    model: Model, files: tuple[Path, Path]
) -> None:
    with opened(model, files) as engine:
        asked = [Request([*PROMPTS[-1], number], tokens=1) for number in range(5, 13)]
        submit(engine, *asked)
        wait(*asked)
        assert engine.counts.computed == len(PROMPTS[-1]) + 8


def test_a_long_prompt_makes_no_answer_miss_a_batch_and_others_wait_their_turn(
    model: Model, files: tuple[Path, Path]
) -> None:
    with opened(model, files) as engine:
        short = [Request([number], tokens=200) for number in range(5, 8)]
        submit(engine, *short)
        while min(len(request.tokens) for request in short) < 5:
            assert not short[0].ended.wait(0.001)
        long = Request([int(token) for token in DRAW.integers(5, 900, 900)], tokens=2)
        submit(engine, long)
        wait(*short, long)
        assert all(later - earlier == 1 for request in short for earlier, later in pairwise(request.at))
        asked = [Request([number], weights, 60) for number in range(5, 8) for weights in (BASE, TASK)]
        submit(engine, *asked)
        wait(*asked)
        gaps = {later - earlier for request in asked for earlier, later in pairwise(request.at)}
        assert max(gaps) <= TURN + 1


def test_requests_of_one_adapter_are_computed_together(model: Model, files: tuple[Path, Path]) -> None:
    asked = [Request([number], weights, 6) for number in range(5, 13) for weights in (BASE, TASK)]
    with opened(model, files, clients=4) as engine:
        submit(engine, *asked)
        wait(*asked)
        assert engine.counts.batches <= 16 * 6 / 4 + TURN


def test_nobody_waits_for_more_than_a_roomful_of_another_adapter(model: Model, files: tuple[Path, Path]) -> None:
    many, one = [Request([number], tokens=6) for number in range(5, 45)], Request([5], TASK, 6)
    with opened(model, files, clients=4) as engine:
        submit(engine, *many, one)
        wait(*many, one)
    assert sum(request.at[0] < one.at[0] for request in many) <= 2 * 4


def test_nobody_waits_behind_a_request_whose_beginning_is_being_read(model: Model, files: tuple[Path, Path]) -> None:
    long = [int(token) for token in DRAW.integers(5, 900, 1200)]
    with opened(model, files) as engine:
        first, same, other = Request([*long, 5], tokens=1), Request([*long, 6], tokens=1), Request([7], tokens=1)
        submit(engine, first, same, other)
        wait(first, same, other)
        assert other.at[0] < first.at[0] < same.at[0]


def test_closing_ends_what_waits_and_what_goes_on(model: Model, files: tuple[Path, Path]) -> None:
    asked = [Request([number], tokens=100_000) for number in range(5, 9)]
    with opened(model, files, clients=2) as engine:
        submit(engine, *asked)
        while not asked[0].tokens:
            assert not asked[0].ended.wait(0.001)
    assert all(request.ended.is_set() and request.error is None for request in asked)


def test_a_request_cancelled_in_line_is_never_begun(model: Model, files: tuple[Path, Path]) -> None:
    with opened(model, files, clients=1) as engine:
        first, second = Request([5], tokens=300), Request([6])
        submit(engine, first, second)
        second.cancelled.set()
        assert second.ended.wait(120)
        assert second.tokens == []
        first.cancelled.set()


def test_the_common_beginning_is_that_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        one, other = (draw.integers(0, 2, draw.integers(0, 9)).tolist() for _ in range(2))
        most = int(draw.integers(0, 9))
        loop = 0
        while loop < min(len(one), len(other), most) and one[loop] == other[loop]:
            loop += 1
        assert common_length(one, other, most) == loop


def read_beside_answers(tokens: int, alone: float, deeper: float) -> list[tuple[int, float]]:
    """Return each batch in which a prompt is read amid 16 answers: its tokens, and its time over that of answers alone.

    `alone` is the time of the answers alone before it, and `deeper` what each token that has been read adds to it.
    """
    pace, done, batches = Pace(), 0, []
    pace.note(alone, 16, 0)
    while done < tokens:
        count = pace.room(16)
        now = alone + deeper * done
        seconds = now + 0.0004 * count
        pace.note(seconds, 16, count)
        done += count
        batches.append((count, seconds / now))
    return batches


def test_a_prompt_is_read_in_slices_that_answers_can_afford() -> None:
    same = [count for count, _ in read_beside_answers(2000, 0.010, 0.0)]
    assert 34 <= max(same) <= 38  # one and a half times 10 ms, at 0.4 ms a token
    deep = read_beside_answers(2000, 0.010, 0.00001)
    assert max(ratio for _, ratio in deep) < 3
    assert max(count for count, _ in deep) > 1.5 * max(same)  # answers are slower by then, and more fits beside them
    zeros = [place for place, (count, _) in enumerate(deep) if not count]
    assert zeros
    assert all(place % (FULL + 1) == FULL for place in zeros)


def test_prompts_that_leave_room_take_no_turn_from_others() -> None:
    pace = Pace()
    pace.note(0.010, 16, 0)
    for _ in range(5 * FULL):
        assert pace.room(16) >= SLICE
        pace.note(0.013, 16, 8)
